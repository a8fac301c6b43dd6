"""`hpcexp …` in processes forked from one that has imported what commands need: a tenth of the CPU time of fresh ones.

For commands whose own imports are not what is tested: what a library prints while it is imported is missing here. With
`launch.isolation=warm` ranks cost little, too: the server that they are forked from is forked as well.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver, util
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from helpers import Said, ended, environment

from hpcexp.rank_protocol import remove_foreign

PRELOADED = (
    *("hpcexp.launch.supervisor.preload", "hpcexp.cli.main", "hpcexp.cli.model", "hpcexp.cli.promote"),
    *("hpcexp.cli.sync", "hpcexp.cli.compare", "hpcexp.train.inference", "hpcexp.tracking.sync.run_process"),
    *("hpcexp.tracking.mlflow.store", "hpcexp.tracking.mlflow.pyfunc", "mlflow.pyfunc", "mlflow.tracking"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
_MOST_BYTES = 1 << 20
_STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class ForkedProcess:
    """A command that runs, with the names of subprocess."""

    def __init__(self, args: tuple[str, ...], life: socket.socket, out: BinaryIO, err: BinaryIO) -> None:
        self.args = args
        self.returncode: int | None = None
        self._life, self._files, self._printed = life, (out, err), ("", "")
        self.pid = self._received()

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self._printed

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._life], [], [], timeout)[0]:
            self.returncode = self._received()
            self._life.close()
            out, err = map(_text, self._files)
            self._printed = out, err
        return self.returncode

    def _received(self) -> int:
        answer = self._life.recv(64)
        assert answer, "the process that commands are forked from has ended"
        return int(answer)


class _ForkServer:
    """The process that commands are forked from."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            # OpenMP reads its variables when torch is imported.
            env = environment(OMP_WAIT_POLICY="PASSIVE")
            self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # whatever other process has a copy of it
        self._socket.close()
        self._process.wait(60)

    def start(self, argv: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> ForkedProcess:
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read when it has ended
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ignored = [number for number in _STOPS if signal.getsignal(number) == signal.SIG_IGN]
            request = json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(env), "ignored": ignored}).encode()
            socket.send_fds(self._socket, [request], [out.fileno(), err.fileno(), theirs.fileno()])
        return ForkedProcess(argv, ours, out, err)


_servers: list[_ForkServer] = []


def start(*argv: str, cwd: Path, **env: str) -> ForkedProcess:
    """`hpcexp argv` in a process of its own, as `helpers.start` starts a fresh one."""
    assert "LD_PRELOAD" not in env, "only a fresh process loads that"
    if not _servers:
        _servers.append(_ForkServer())
    return _servers[0].start(argv, cwd, environment(**env))


def command(*argv: str, cwd: Path, **env: str) -> Said:
    """`hpcexp argv`, run to its end in a process of its own, as `helpers.command` does it in a fresh one."""
    return ended(start(*argv, cwd=cwd, **env))


def end_server() -> None:
    """End the process that commands are forked from, where there is one."""
    while _servers:
        _servers.pop().close()


def _text(file: BinaryIO) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


def _serve(requests: socket.socket) -> None:
    """Return in a process that is to be a command, with its directory, environment and arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, fds, _, _ = socket.recv_fds(requests, _MOST_BYTES, 3)
        if not request:
            os._exit(0)
        if not os.fork():
            break
        for fd in fds:
            os.close(fd)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        life = socket.socket(fileno=fds[2])
        life.send(str(pid).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):  # whoever has asked is gone
            life.send(str(code).encode())
        os._exit(0)
    os.close(fds[2])
    _become(json.loads(request), fds[:2])


def _become(request: dict[str, Any], fds: list[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in enumerate([nothing, *fds]):
        os.dup2(fd, number)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:  # what ignores them has all that it starts ignore them
        signal.signal(number, signal.SIG_IGN)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # as TMPDIR says
    sys.argv = [str(Path(importlib.import_module("hpcexp").__path__[0], "__main__.py")), *request["argv"]]
    sys.path[0] = request["cwd"]  # as `python -m` has it
    sys.modules["__main__"] = ModuleType("__main__")  # ranks would import this file as their main module
    _fork_server_of_ranks()


def _fork_server_of_ranks() -> None:
    """Have the first server of warm ranks that this process starts be one that is forked now, before anything happens.

    It is a child of this process, as it would be, and ends with it. Further servers are fresh.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        theirs.close()
        start_fresh = util.spawnv_passfds

        def start(path: bytes, args: list[str], passed: list[int]) -> int:
            if _SERVER not in args[-1]:  # what tracks shared memory
                return start_fresh(path, args, passed)
            util.spawnv_passfds = start_fresh
            with ours:
                request = {"code": args[-1], "fds": passed, "cwd": str(Path.cwd()), "env": dict(os.environ)}
                socket.send_fds(ours, [json.dumps(request).encode()], passed)
            return pid

        util.spawnv_passfds = start
        return
    ours.close()
    request, fds, _, _ = socket.recv_fds(theirs, _MOST_BYTES, 3)
    theirs.close()
    if request:
        _be_server_of_ranks(json.loads(request), fds)
    os._exit(0)


_SERVER = "from multiprocessing.forkserver import main; "


def _be_server_of_ranks(request: dict[str, Any], fds: list[int]) -> None:
    """Run what a fresh interpreter would be given to run, with the numbers that its files have here."""
    number = dict(zip(request["fds"], fds, strict=True))

    def main(*arguments: Any, **options: Any) -> None:
        arguments = tuple(number.get(each, each) if isinstance(each, int) else each for each in arguments)
        options = {name: number.get(each, each) if isinstance(each, int) else each for name, each in options.items()}
        forkserver.main(*arguments, **options)  # type: ignore[attr-defined]

    os.setsid()  # with the rest of this, as hpcexp.launch.supervisor.preload does when it is imported
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # as TMPDIR says
    remove_foreign(os.environ)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    with suppress(SystemExit):
        exec(request["code"].removeprefix(_SERVER), {"main": main})


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):
        for module in PRELOADED:
            importlib.import_module(module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    importlib.import_module("hpcexp.cli.main").main()
