"""A journal as one curve for each metric, thinned where it is too long to draw; or one metric as it is."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.runs.journal import read_points

MAX_POINTS = 20_000
"""Points per curve in a picture; more cannot be distinguished."""
_READ_POINTS = 10_000


@dataclass
class Series:
    """Values over steps that rise."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    limit: int | None = MAX_POINTS
    """Where there are more, every second one is left out."""
    _stride: int = 1
    _skipped: int = 0

    def add(self, step: int, value: float) -> None:
        """Add a value; one of an earlier step means that the run resumed there, and replaces what followed."""
        if self.steps and step <= self.steps[-1]:
            cut = bisect_left(self.steps, step)
            del self.steps[cut:], self.values[cut:]
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self.steps.append(step)
        self.values.append(value)
        if self.limit is not None and len(self.steps) > self.limit:
            del self.steps[1::2], self.values[1::2]
            self._stride *= 2


def read_series(journal: Path) -> dict[str, Series]:
    """Every metric of the journal by its name."""
    series: dict[str, Series] = defaultdict(Series)
    points, offset = read_points(journal, 0, _READ_POINTS)
    while points:
        for point in points:
            for key, value in point.metrics.items():
                series[key].add(point.step, value)
        points, offset = read_points(journal, offset, _READ_POINTS)
    return dict(series)


def read_curve(journal: Path, metric: str) -> Series:
    """One metric of the journal with all its values."""
    curve = Series(limit=None)
    for point in read_points(journal, metric=metric)[0]:
        if metric in point.metrics:
            curve.add(point.step, point.metrics[metric])
    return curve
