"""Supervising several jobs in one process: each yields where it would wait for its ranks."""

from __future__ import annotations

import select
import signal
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")

POLL_S = 0.05
"""The longest wait: what no file announces, such as the end of a process, is polled this often."""

ENDING_S = 0.005
"""The wait once the ranks have closed their pipe and are about to end."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Supervision = Generator["int | None", None, _T]
"""Yields the file to wait on, None if there is none; returns the result."""


def alone(supervision: Supervision[_T]) -> _T:
    """Run one supervision to its end, for a job that has this process for itself."""
    while True:
        try:
            fd = next(supervision)
        except StopIteration as e:
            result: _T = e.value
            return result
        wait([fd])


def wait(fds: Collection[int | None]) -> None:
    """Return when one of the files that supervisions have yielded is readable, or it is time to poll."""
    select.select([fd for fd in fds if fd is not None], [], [], ENDING_S if None in fds else POLL_S)


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """The signals that arrive meanwhile, in order, instead of their default action."""
    caught: list[int] = []

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    # Signals that nohup or a shell's `&` ignores stay ignored.
    before = {s: signal.signal(s, catch) for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that `finally` blocks run."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
