"""Locks that end with the process that holds them, and the names of those processes."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hpcexp.errors import InUseError
from hpcexp.files.untrusted import open_lock, open_regular, read_text

_MAX_HOLDER_BYTES = 4096
"""Of a lock: the name of the process that has it."""


@contextmanager
def held(lock: Path, what: str, fix: str = "wait for it, or end it") -> Iterator[int]:
    """Hold `lock` against other processes of this machine; InUseError names the one that has it.

    What is given is its descriptor: who inherits it holds the lock, too.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_lock(lock), "r+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            holder = file.read(_MAX_HOLDER_BYTES).strip() or "another process"
            raise InUseError(f"{what} {holder}.\nFix: {fix}.") from e
        if os.fstat(file.fileno()).st_nlink == 1:  # otherwise it is somebody's file, too
            file.truncate(0)
            file.write(process_name(os.getpid()))
            file.flush()
        yield file.fileno()


def holder_of(lock: Path) -> str | None:
    """The process that has `lock`, as `process 17 on ada`; None where none has it."""
    try:
        with open_regular(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return read_text(lock, _MAX_HOLDER_BYTES).strip() or "another process"
    return None


def process_name(pid: int) -> str:
    """A process of this machine, as `holder_of` names it."""
    return f"process {pid} on {socket.gethostname()}"


@contextmanager
def held_within(
    timeout_s: float, lock: Path, what: str, waiting: Callable[[InUseError], object] = lambda _: None
) -> Iterator[None]:
    """`held`, waiting for `timeout_s` while another process has the lock. `waiting` gets who has it, once."""
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        is_first = True
        while True:
            try:
                stack.enter_context(held(lock, what))
                break
            except InUseError as e:
                if time.monotonic() >= deadline:
                    raise
                if is_first:
                    is_first = False
                    waiting(e)
                time.sleep(0.05)
        yield
