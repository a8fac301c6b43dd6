"""Time that passes, apart from the time of day, which anybody may set at any moment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_UPTIME = Path("/proc/uptime")


def boottime() -> float:
    """Seconds since this machine was booted, those that it slept included; comparable between its processes."""
    try:
        # Not CLOCK_BOOTTIME: what fakes a process's time of day, as libfaketime does, takes it for that.
        return float(_UPTIME.read_bytes().partition(b" ")[0])
    except OSError:
        return time.monotonic()


def started_now() -> dict[str, Any]:
    """The fields of a status that say when its attempt started: by the time of day, and since boot."""
    return {"started": time.time(), "started_boot_s": boottime()}


def ended_now(started_boot_s: float | None) -> dict[str, Any]:
    """The fields that say when an attempt ended, in the process that started it."""
    took = {} if started_boot_s is None else {"took_s": max(0.0, boottime() - started_boot_s)}
    return {"ended": time.time(), **took}


def running_s(started: float | None, started_boot_s: float | None, *, is_here: bool) -> float | None:
    """Seconds since an attempt that still runs was started. `is_here`: by a process of this boot of this machine."""
    if is_here and started_boot_s is not None:
        return max(0.0, boottime() - started_boot_s)
    return None if started is None else max(0.0, time.time() - started)
