"""A run as an MLflow store has it, and what such a store is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from hpcexp.runs.series import Series


class Stored(NamedTuple):
    """A run as the store has it."""

    id: str
    name: str
    experiment: str
    status: str
    started_ms: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""


class RunReader(Protocol):
    """Where runs are read from."""

    def runs(self) -> list[Stored]:
        """All that are not deleted, of all experiments."""

    def curve(self, run_id: str, metric: str) -> Series:
        """A metric's values over the steps."""


def series_of(rows: Iterable[tuple[int, float]]) -> Series:
    """The curve through `(step, value)`, in the order of their steps."""
    curve = Series(limit=None)
    for step, value in rows:
        curve.add(step, value)
    return curve
