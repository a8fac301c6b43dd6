"""CPU time of a command and of the processes that it leaves behind, as the server of warm workers, which ends later."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import cpu_seconds

_PR_SET_CHILD_SUBREAPER = 36
"""Of prctl(2): orphans become children of this process."""


def cpu_seconds_of_all(arguments: Sequence[str], cwd: Path) -> float:
    """As `benchmarks.measure.cpu_seconds`, with the orphans: waits for them too."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        return cpu_seconds(arguments, cwd) + _orphans()
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _orphans() -> float:
    """User and system time of all children of this process that are left, and of those that they waited for."""
    seconds = 0.0
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return seconds
        seconds += usage.ru_utime + usage.ru_stime
