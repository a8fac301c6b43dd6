"""What a sweep has used of its budget, over all its drivers and continuations."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.files.untrusted import UnusableFileError
from hpcexp.runs.records.files import read, write
from hpcexp.runs.records.sweep import Spent
from hpcexp.schema.sweep import Budget

WRITE_EVERY_S = 30.0
"""As much is forgotten at most when a driver is killed."""


@dataclass
class Meter:
    """Counts what one driver uses, in a file of its own beside those of others."""

    directory: Path
    token: str
    budget: Budget
    _began: float = field(default_factory=time.monotonic)
    _core_s: float = 0.0
    _gpu_s: float = 0.0
    _next_write: float = 0.0

    def spent(self, core_s: float, gpu_s: float) -> str:
        """Take what this driver's jobs have used so far; why the budget is used up, empty while it is not."""
        self._core_s, self._gpu_s = core_s, gpu_s
        limits = {"hours": self.budget.hours, "core_hours": self.budget.core_hours, "gpu_hours": self.budget.gpu_hours}
        if not any(limits.values()):
            return ""
        if time.monotonic() >= self._next_write:
            self.write()
        used = self._used_by_all()
        over = [f"budget.{name}={limit:g}" for name, limit in limits.items() if limit and getattr(used, name) >= limit]
        return f"{over[0]} is used up" if over else ""

    def write(self) -> None:
        """Leave it for others, and for later."""
        self._next_write = time.monotonic() + WRITE_EVERY_S
        with contextlib.suppress(OSError):
            write(self._file, self._mine())

    @property
    def _file(self) -> Path:
        return self.directory / "spent" / f"{self.token}.json"

    def _mine(self) -> Spent:
        hours = (time.monotonic() - self._began) / 3600
        return Spent(hours=hours, core_hours=self._core_s / 3600, gpu_hours=self._gpu_s / 3600)

    def _used_by_all(self) -> Spent:
        """What the files of all drivers add up to; a damaged one counts nothing."""
        used = [self._mine()]
        for file in self._file.parent.glob("*.json"):
            if file != self._file:
                with contextlib.suppress(UnusableFileError):
                    used.append(read(file, Spent))
        return Spent(
            hours=sum(spent.hours for spent in used),
            core_hours=sum(spent.core_hours for spent in used),
            gpu_hours=sum(spent.gpu_hours for spent in used),
        )
