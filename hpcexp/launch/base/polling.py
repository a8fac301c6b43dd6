"""Jobs that take turns in one process: each gives way where it would wait for its ranks."""

from __future__ import annotations

import select
import signal
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")

POLL_S = 0.05
"""The longest wait: what nothing is heard of, such as a process that ends, is looked at as often."""

ENDING_S = 0.005
"""As long where the ranks have closed their pipe, and are about to end."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Supervision = Generator["int | None", None, _T]
"""Gives way with the file on which something may be heard, None where nothing will be; returns what came of it."""


def alone(supervision: Supervision[_T]) -> _T:
    """Take all turns of a job that has this process for itself."""
    while True:
        try:
            fd = next(supervision)
        except StopIteration as e:
            came_of_it: _T = e.value
            return came_of_it
        wait([fd])


def wait(fds: Collection[int | None]) -> None:
    """Return once something may be heard on one of the files that jobs have given way with."""
    select.select([fd for fd in fds if fd is not None], [], [], ENDING_S if None in fds else POLL_S)


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Signals that arrive meanwhile, in their order, instead of what they would do."""
    caught: list[int] = []

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    # What nohup or a shell's `&` has them ignore stays ignored.
    before = {s: signal.signal(s, catch) for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: with what it has to tidy up."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
