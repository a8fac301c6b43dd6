"""No secret is on the command line of any process that hpcexp starts: everybody on a machine can list processes."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers import FAST, LEAN, command, ended, start, write_module
from postgres import server_programs, serving_postgres
from served import ADA, ADMIN, serving
from test_secrets import SECRET, SOURCE

from hpcexp.rundir import find_runs

SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", *LEAN)
NEEDS_POSTGRES = pytest.mark.skipif(server_programs() is None, reason="PostgreSQL is not installed")
NEEDS_RESTIC = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")


_PAUSE_S = 0.02
_PATIENCE_S = 600
"""For a command on a machine that does other things as well."""


class Watched:
    """What every process with a mark in its environment has had on its command line."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(16)
        self.seen: dict[int, set[tuple[str, ...]]] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @property
    def env(self) -> dict[str, str]:
        """By which it is inherited: also by those that outlive who started them."""
        return {"HPCEXP_TEST_MARK": self.mark}

    def told(self, *secret: str, but: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """Command lines that tell a secret, without that of the user."""
        lines = {line for lines in self.seen.values() for line in lines}
        return [line for line in lines if line[-len(but) :] != but and any(s in word for s in secret for word in line)]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        mark, ours = f"HPCEXP_TEST_MARK={self.mark}".encode(), {}
        # Without a pause it takes a core from what it watches: these tests' commands then run into their time limits.
        while not self._is_over.wait(_PAUSE_S):
            for entry in Path("/proc").iterdir():
                with suppress(OSError):
                    if not entry.name.isdigit():
                        continue
                    if not ours.get(entry.name):  # an environment may be still another's, before exec
                        ours[entry.name] = mark in (entry / "environ").read_bytes()
                    if ours[entry.name]:
                        line = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0")
                        self.seen.setdefault(int(entry.name), set()).add(tuple(line.split("\0")))


@contextmanager
def watched() -> Iterator[Watched]:
    watch = Watched()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


@pytest.fixture
def guarded(project: Path) -> tuple[str, ...]:
    """Overrides of a data set that wants a secret."""
    write_module(project, "guarded_ps", SOURCE)
    return ("data._target_=guarded_ps.Guarded", f"data.api_token={SECRET}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_a_run_a_sweep_and_a_drill(project: Path, guarded: tuple[str, ...]) -> None:
    """Ranks, their servers, what syncs, and trainings that a drill starts; what is asked is on the user's alone."""
    two = ("hardware=cpu", "hardware.devices=2")
    commands = (
        ("train", *guarded, *FAST, *two),
        ("train", "-m", "seed=1,2", *guarded, *FAST),
        ("train", "-m", "hydra/launcher=joblib", "seed=3,4", *guarded, *FAST),
        ("drill", "preempt", "drill.kills=1", *guarded, "hardware=cpu", "trainer.max_epochs=2", *LEAN),
        ("sync",),
    )
    for argv in commands:
        with watched() as watch:
            said = ended(start(*argv, cwd=project, **watch.env), _PATIENCE_S)
        assert 0 == said.status, (argv, said)
        assert len(watch.seen) > (argv != ("sync",)), argv
        assert [] == watch.told(SECRET, but=argv), argv


@pytest.mark.slow
@NEEDS_POSTGRES
def test_of_a_server_and_who_syncs_to_it(project: Path) -> None:
    """Passwords of the database, of the first administrator, and of a user in the tracking address."""
    with serving_postgres() as database, watched() as watch:
        env = {**watch.env, "MLFLOW_BACKEND_STORE_URI": database.uri}
        with serving(project / "server", **env) as server:
            server.add_user(ADA)
            to = f"tracking.uri=http://{':'.join(ADA)}@127.0.0.1:{server.port}"
            for argv in (("train", *SHORT, to), ("train", "-m", "seed=1,2", *SHORT, to)):
                with watched() as training:
                    said = command(*argv, cwd=project, **training.env)
                assert 0 == said.status, said
                assert len(training.seen) > 2
                assert [] == training.told(ADA[1], but=argv)
            next(find_runs(project / "runs")).mlflow.unlink()
            assert 0 == command("sync", cwd=project, **watch.env).status
            backup = ("backup", str(project / "kept"), "--server", str(project / "server"))
            assert 0 == command(*backup, cwd=project, **env).status
    assert len(watch.seen) > 3
    assert [] == watch.told("s3cr3t", ADMIN[1], ADA[1])


@pytest.mark.slow
@NEEDS_POSTGRES
def test_of_a_backup_of_a_database(project: Path) -> None:
    """PostgreSQL's own programs, for which the address is in the environment."""
    with serving_postgres() as database, watched() as watch:
        env = {"MLFLOW_TRACKING_URI": database.uri, "MLFLOW_BACKEND_STORE_URI": database.uri, **watch.env}
        assert 0 == command("train", *SHORT, cwd=project, **env).status
        said = command("backup", "kept", cwd=project, **env)
        assert 0 == said.status, said
        assert "s3cr3t" not in said.out + said.err
    assert any("pg_dump" in line[0] for lines in watch.seen.values() for line in lines)
    assert [] == watch.told("s3cr3t")


class _NoRepository(BaseHTTPRequestHandler):
    """Whatever is asked for is not there."""

    def parse_request(self) -> bool:
        if super().parse_request():
            self.send_error(404)
        return False

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.mark.slow
@NEEDS_RESTIC
def test_of_a_repository_with_a_password_in_its_address(project: Path) -> None:
    """restic is told by its environment; what it answers is shown without."""
    assert 0 == command("train", *FAST, cwd=project).status
    server = HTTPServer(("127.0.0.1", 0), _NoRepository)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        argv = ("backup", f"restic:rest:http://ada:s3cr3t@127.0.0.1:{server.server_port}/")
        with watched() as watch:
            process = start(*argv, cwd=project, RESTIC_PASSWORD="another", **watch.env)
            out, err = process.communicate(timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert 2 == process.returncode, (out, err)
    assert "restic init --repo rest:http://ada@127.0.0.1" in err
    assert "s3cr3t" not in out + err
    assert any("restic" in line[0] for lines in watch.seen.values() for line in lines)
    assert [] == watch.told("s3cr3t", "another", but=argv)


def test_arguments_that_cannot_be_read_are_a_mistake(project: Path) -> None:
    """Whoever has set the variable by hand is told."""
    (project / "odd").write_text("3")
    for file in ("none", "odd", "/dev/zero", "."):
        said = command("runs", cwd=project, HPCEXP_ARGUMENTS=file)
        assert (2, True) == (said.status, said.err.startswith(f"HPCEXP_ARGUMENTS={file}: ")), said
