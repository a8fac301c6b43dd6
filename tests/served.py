"""A real `hpcexp serve` for the tests, and accounts on it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@contextmanager
def serving(data: Path, *options: str, end: int = signal.SIGTERM, **env: str) -> Iterator[Served]:
    """`hpcexp serve` in a process of its own, ended by the signal `end`."""
    port = free_port()
    given = {"MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1], **env}
    log = data.parent / "serve.log"
    command = [sys.executable, "-m", "hpcexp", "serve", str(data), "--port", str(port), *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment(**given), stdout=output, stderr=output, text=True)
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
