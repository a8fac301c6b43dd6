"""Warm workers: ranks forked from a server that has imported everything a job needs, so that each starts at once.

The server is multiprocessing's own forkserver. It imports `hpcexp.launch.supervisor.preload` and nothing of the user's;
a rank is forked from it into a session of its own, and a crash stays in the rank. The server ends with the last process
that uses it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from hpcexp.errors import RunError
from hpcexp.files.untrusted import open_append
from hpcexp.launch.base.rank_process import Process, Start, signal_session

PRELOADED = "hpcexp.launch.supervisor.preload"
SERVERS = 5
"""As many are started, one after the other, until one makes a worker."""
ENDING_S = 1.0


def warm_up() -> None:
    """Have the server start, and return before it has: it imports while jobs are planned."""
    multiprocessing.set_forkserver_preload([PRELOADED])
    with _server_environment():
        forkserver.ensure_running()


def start_warm(start: Start) -> Process:
    """A rank forked from the server, which is started where it is not there (any more)."""
    with os.fdopen(open_append(start.log), "ab") as log:
        fds = {name: _Sent(fd) for name, fd in start.fds.items()}
        return _Forked(_started(_begin, start, fds, _Sent(log.fileno())))


@dataclass(frozen=True)
class WorkerMemory:
    """What an idle worker takes, in bytes."""

    private: int
    """Its own, which no other process has."""
    shared: int
    """Pages of the server, which all workers have in common."""


def idle_memory() -> WorkerMemory:
    """Memory of a worker that has nothing to do yet."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = _started(_measure, sender)
    sender.close()
    try:
        return WorkerMemory(*receiver.recv())
    finally:
        worker.join()


def target_problems(configs: Sequence[Mapping[str, Any]], project: Path) -> list[list[str]]:
    """What is wrong with the targets of each configuration, by real signatures, which only a worker can import."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = _started(_check, sender, configs, project)
    sender.close()
    try:
        found: list[list[str]] = receiver.recv()
        return found
    except EOFError:
        return [[] for _ in configs]  # it died of what it imported; the jobs will say of what
    finally:
        worker.join()


def _started(target: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """A running worker. A server that is killed meanwhile (`kill -9`, out of memory) is restarted.

    RunError where each server ends before it has made the worker.
    """
    for _ in range(SERVERS):
        warm_up()
        worker = ForkServerProcess(target=target, args=arguments)
        try:
            worker.start()
        except (EOFError, ConnectionError):
            _await_end(_server())
            continue
        return worker
    raise RunError(
        f"The server of warm workers has ended {SERVERS} times before it made a worker: something kills it, or it "
        "fails at its imports (then what it printed says why).\n"
        "Fix: more memory, or launch.isolation=process, which does without a server."
    )


class _Forked:
    """multiprocessing's process, with the names of subprocess."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self._server = _server()
        assert process.pid is not None
        self.pid = process.pid
        self._killed: int | None = None

    def poll(self) -> int | None:
        code = self._killed or self._process.exitcode
        if code == _NOT_KNOWN and not _is_child(self._server):
            # The server counts its children; where it is gone nobody does, and a rank that still runs is ended by hand.
            signal_session(self.pid, signal.SIGKILL)
            code = self._killed = -signal.SIGKILL
        return code

    def wait(self) -> None:
        self._process.join()
        self.poll()


_NOT_KNOWN = 255
"""multiprocessing's exit status of a process whose server is gone; a rank may also have ended with it."""


def _server() -> int:
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def _await_end(pid: int) -> None:
    """Return once a child has ended, or after `ENDING_S`: a process that is killed closes its files a little before.

    Until then multiprocessing takes the server for alive. It may be: then only the worker was killed.
    """
    deadline = time.monotonic() + ENDING_S
    while _is_child(pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def _is_child(pid: int) -> bool:
    """Whether a child of this process still runs. Leaves its exit status to who waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


class _Sent:
    """An open file on its way to the server's child, where it arrives as a number."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (reduction.DupFd(self._fd),)


def _received(sent: Any) -> int:
    number: int = sent.detach()
    return number


@contextmanager
def _server_environment() -> Iterator[None]:
    """The server's environment: OpenMP reads its variables when torch is loaded, and not again in a rank."""
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


def _begin(start: Start, fds: Mapping[str, int], log: int) -> None:
    """In the forked process: become the rank."""
    os.setsid()
    # As in a fresh process: by multiprocessing's own doing, each data worker would be forked from another new server.
    multiprocessing.set_start_method(None, force=True)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update({**start.env, **{name: str(fd) for name, fd in fds.items()}})
    os.chdir(start.project)
    sys.path[:0] = start.env["PYTHONPATH"].split(os.pathsep)
    sys.argv = ["hpcexp.job", start.run_dir]
    sys.exit(importlib.import_module("hpcexp.job").main([start.run_dir]))


def _check(sender: Any, configs: Sequence[Mapping[str, Any]], project: Path) -> None:
    """In the forked process: import what the targets name, and compare."""
    os.chdir(project)
    sys.path.insert(0, str(project))
    check = importlib.import_module("hpcexp.targets.signature_check").check_targets
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        sender.send([check(config) for config in configs])


def _measure(sender: Any) -> None:
    """In the forked process: say what it takes."""
    kilobytes = {
        name: int(rest.split()[0])
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        for name, _, rest in [line.partition(":")]
    }
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    shared = kilobytes["Shared_Clean"] + kilobytes["Shared_Dirty"]
    sender.send((private * 1024, shared * 1024))
