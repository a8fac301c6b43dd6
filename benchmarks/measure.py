"""Interleaved measurements, their ratios, and the CPU time of commands."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import METER_FILE
from benchmarks.size import size

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parent.parent

HEADER = """\
| what | measured | against | ratio (median) | pairs (min–max) | goal |
|---|---:|---:|---:|---:|---:|"""


@dataclass(frozen=True)
class Row:
    """One line of the table: `measured[i]` and `against[i]` were taken in the same round."""

    what: str
    measured: Sequence[float]
    """Seconds, or what `shown` says."""
    against: Sequence[float] = ()
    """Seconds of the raw thing; empty where there is nothing to hold it against."""
    goal: float | None = None
    """Largest ratio that is good enough."""
    shown: Callable[[float], str] | None = None
    """How a value is written; empty: as seconds."""

    def markdown(self) -> str:
        """The line as in docs/performance.md."""
        shown = self.shown or duration
        ratios = [m / a for m, a in zip(self.measured, self.against, strict=False)]
        cells = [self.what, shown(statistics.median(self.measured))]
        if ratios:
            cells += [shown(statistics.median(self.against)), f"{statistics.median(ratios):.2f} ×"]
            cells += [f"{min(ratios):.2f}–{max(ratios):.2f}", f"≤ {self.goal:g} ×" if self.goal else ""]
        else:
            cells += ["", "", f"{shown(min(self.measured))}–{shown(max(self.measured))}", ""]
        return f"| {' | '.join(cells)} |"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    for least, factor, unit in ((1.0, 1.0, "s"), (1e-2, 1e3, "ms")):
        if seconds >= least:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def megabytes(size: float) -> str:
    """Bytes as a person would say them."""
    return f"{size / 1e6:.3g} MB"


def interleaved(ways: Mapping[str, Callable[[], T]], pairs: int) -> dict[str, list[T]]:
    """What each way returned in each of `pairs` rounds, after one round that does not count.

    Rounds go through the ways forwards and backwards by turns, so that a drift of the machine favours none.
    """
    taken: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(size(0, 1), pairs + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            result = ways[name]()
            if number:
                taken[name].append(result)
    return taken


def environment() -> dict[str, str]:
    """That of a measured command: one thread, this checkout, and nothing of the user's that changes what it does."""
    # Without compiled files every command would compile this checkout anew, but not the libraries it is held against.
    dropped = ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def start(arguments: Sequence[str], cwd: Path, text: str = "") -> subprocess.Popen[bytes]:
    """A new process of the running Python, `text` on its stdin; what it says goes to a file in `cwd`."""
    (cwd / "input").write_text(text)
    with (cwd / "output.log").open("wb") as log, (cwd / "input").open("rb") as stdin:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment(),
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def cpu_seconds(arguments: Sequence[str], cwd: Path, text: str = "") -> float:
    """User and system time of the running Python with `arguments`, and of all processes that it waited for."""
    process = start(arguments, cwd, text)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ended_well(process, cwd)
    return usage.ru_utime + usage.ru_stime


def metered(directory: Path, key: str) -> float:
    """What the one `benchmarks.meter.Meter` below `directory` took: `until_first_step_s` or `step_s`."""
    (file,) = directory.rglob(METER_FILE)
    seconds: float = json.loads(file.read_text())[key]
    return seconds


def ended_well(process: subprocess.Popen[bytes], cwd: Path) -> None:
    """RuntimeError with what a command said where it failed: its time would mean nothing."""
    if process.returncode:
        said = (cwd / "output.log").read_text(errors="replace")
        raise RuntimeError(f"{process.args!r} ended with status {process.returncode}:\n{said}")
