"""A real `hpcexp serve` for the tests, and accounts on it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from helpers import environment
from record_support import free_port, wait_until

ADMIN = "admin", "correct-horse-battery"
ADA = "ada", "adas-own-password"
BOB = "bob", "bobs-own-password"


@dataclass(frozen=True)
class Served:
    """A server that runs, with its directory and its process."""

    data: Path
    port: int
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, account: tuple[str, str] | None = None, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and answer of a call of its API."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json", **headers})
        if account:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(account).encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read()

    def add_user(self, account: tuple[str, str]) -> None:
        body = dict(zip(("username", "password"), account, strict=True))
        status, answer = self.ask("/api/2.0/mlflow/users/create", ADMIN, body)
        assert 200 == status, answer


def basic(account: tuple[str, str]) -> dict[str, str]:
    """The header of a name and a password."""
    return {"Authorization": "Basic " + base64.b64encode(":".join(account).encode()).decode()}


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def send(port: int, method: str, target: str, body: bytes | str = b"", **headers: str) -> Answer:
    """The answer to a request that is sent as it is written here: no client mends its path. `_` is a header's `-`."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        return _talked(connection, port, method, target, body, headers)


def _talked(
    connection: socket.socket, port: int, method: str, target: str, body: bytes | str, headers: dict[str, str]
) -> Answer:
    content = body.encode() if isinstance(body, str) else body
    known = {"Host": f"127.0.0.1:{port}", "Connection": "close", "Content-Length": str(len(content))}
    sent = {**known, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
    with HTTPResponse(connection, method=method) as response:
        response.begin()
        return Answer(response.status, response.headers, response.read())


OTHER_USER = 65534
"""nobody"""
_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin")
"""One that every user may start, which this one may lie too deep for."""
IS_ROOT = os.getuid() == 0 and _PYTHON is not None
needs_root = pytest.mark.skipif(
    not IS_ROOT, reason="only root can start another user's process, of a Python open to all"
)


def as_another_user(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A Python program, run by a user who is nobody's friend."""
    return subprocess.run(
        [_PYTHON or "", "-c", code, *map(str, arguments)],
        cwd="/",
        user=OTHER_USER,
        group=OTHER_USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are closed to all others."""
    with tempfile.TemporaryDirectory(prefix="hpcexp-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@contextmanager
def serving(data: Path, *options: str, end: int = signal.SIGTERM, umask: int = -1, **env: str) -> Iterator[Served]:
    """`hpcexp serve` in a process of its own, started with this umask, ended by the signal `end`."""
    port = free_port()
    given = {"MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1], **env}
    log = data.parent / "serve.log"
    command = [sys.executable, "-m", "hpcexp", "serve", str(data), "--port", str(port), *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment(**given), stdout=output, stderr=output, text=True, umask=umask
        )
    server = Served(data, port, process)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return server.ask("/health")[0] == 200
        except OSError:
            return False

    try:
        wait_until(is_up, "the server answers", timeout_s=180)
        yield server
    finally:
        process.send_signal(end)
        assert (-end if end == signal.SIGKILL else 0) == process.wait(30)


@dataclass(frozen=True)
class Shown:
    """An interface that runs, and what its command printed."""

    port: int
    process: subprocess.Popen[str]
    out: str
    err: str

    @property
    def address(self) -> str:
        """The first of what was printed: with the token."""
        return self.out.split()[0]

    @property
    def token(self) -> str:
        return self.address.partition("token=")[2].partition("#")[0]

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@contextmanager
def showing(project: Path, *options: str, **env: str) -> Iterator[Shown]:
    """`hpcexp ui` in a project, in a process of its own; it answers, as it has printed its address."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "hpcexp", "ui", "--port", str(port), *options]
    with tempfile.TemporaryDirectory() as place:
        files = Path(place, "out"), Path(place, "err")
        with files[0].open("w") as out, files[1].open("w") as err:
            process = subprocess.Popen(command, cwd=project, env=environment(**env), stdout=out, stderr=err, text=True)

        def is_up() -> bool:
            assert process.poll() is None, files[1].read_text()
            return "\n" in files[0].read_text()

        try:
            wait_until(is_up, "its address is printed", timeout_s=180)
            yield Shown(port, process, *(file.read_text() for file in files))
        finally:
            process.send_signal(signal.SIGINT)
            assert 0 == process.wait(30)
