"""A PostgreSQL server of the tests' own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from record_support import free_port


def server_programs() -> Path | None:
    """The directory with `initdb` and `pg_ctl`; None where there is none."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return places[-1] if places else None


class Server:
    """A server in `place`, with an empty database for the user ada; it can be stopped and started again."""

    def __init__(self, place: Path) -> None:
        self._data, self._log = place / "data", place / "log"
        self.port = free_port()
        self.uri = f"postgresql://ada:s3cr3t@127.0.0.1:{self.port}/postgres"
        password = place / "password"
        password.write_text("s3cr3t")
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to be run by root
            user = pwd.getpwnam("postgres")
            self._as = {"user": user.pw_uid, "group": user.pw_gid}
            for path in (place, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", self._data, "-U", "ada", "-A", "scram-sha-256", "--pwfile", password, "-N")

    def start(self) -> None:
        """Return once it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", self._log, "-w", "start")

    def empty(self, name: str) -> str:
        """URI of a new database."""
        from sqlalchemy import create_engine, text

        engine = create_engine(self.uri.replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return self.uri.removesuffix("postgres") + name

    def stop(self) -> None:
        """As at once as a crash."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        programs = server_programs()
        assert programs is not None
        command = [str(programs / program), *map(str, arguments)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=60, **self._as)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def serving_postgres() -> Iterator[Server]:
    """A server that runs. Its directory is not among pytest's, which only their owner may enter."""
    with TemporaryDirectory(prefix="postgres-") as place:
        server = Server(Path(place))
        server.start()
        try:
            yield server
        finally:
            server.stop()
