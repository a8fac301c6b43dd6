"""A process that is killed at a certain step of what it writes: before the n-th statement, file operation or sync."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from typing import Any

_OPERATIONS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate", "sqlite3.connect"}


def is_killed_at(step: int, act: Callable[[], object]) -> bool:
    """Whether `act`, in a forked process, was killed before its step of that number, from 1; it has ended otherwise."""
    process = os.fork()
    if process == 0:
        try:
            _arm(step)
            act()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked process must not go on as the one that it is a copy of
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert signal.SIGKILL == os.WTERMSIG(status)
        return True
    assert os.WEXITSTATUS(status) == 0, f"it failed before its step {step}"
    return False


def _arm(step: int) -> None:
    left = step

    def count(_: object = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            count()

    connect, sync = sqlite3.connect, os.fsync

    def traced(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **more)
        connection.set_trace_callback(count)
        return connection

    def counted(handle: int) -> None:
        count()
        sync(handle)

    sqlite3.connect = sqlite3.dbapi2.connect = traced  # type: ignore[assignment]
    os.fsync = counted  # type: ignore[assignment]
    sys.addaudithook(hook)
