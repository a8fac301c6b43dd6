"""Comparing the results of two trainings to the bit, and finding where they diverge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpcexp.files.documents import plain
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points
from hpcexp.runs.records.results import Summary, read_summary

SUMMARISED = ("epochs", "steps", "diverged", "best", "test")
"""What of a summary must be the same. Durations differ, and the files' digests: they hold more than weights."""
_OF_THE_FILE = ("path", "sha256", "bytes")

RTOL = {"64-true": 1e-10, "32-true": 1e-5, "16-mixed": 1e-2, "bf16-mixed": 2e-2, "bf16-true": 2e-2}
"""How far values may be apart in each `trainer.precision` where only rounding differs.

In float32 the digits, by MLP and CNN, stay below 1e-6 for their first 50 steps; from there the CNN's rounding grows to
2e-4 at step 84. A fault, such as samples in another step or a batch norm over half the batch, gives 1e-4 in the first.
"""

Value = tuple[int, str, str]
"""Step, metric, and the value to the bit (`float.hex`)."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    what: str
    is_same: bool
    detail: str


@dataclass(frozen=True)
class ValueDifference:
    """A metric of a step that two trainings do not have in common."""

    step: int
    metric: str
    expected: tuple[float, ...]
    """Empty where it was not logged."""
    found: tuple[float, ...]

    def __str__(self) -> str:
        return f"step {self.step}: {self.metric} {_values(self.expected)} ≠ {_values(self.found)}"

    @property
    def apart(self) -> float:
        """The relative difference; infinite where one of them has no such value."""
        if len(self.expected) != len(self.found):
            return math.inf
        return max(map(relative, sorted(self.expected), sorted(self.found)))


def compared(whole: RunDir, other: RunDir) -> list[Check]:
    """Weights, summary and journal of the `other` run, compared with those of the `whole` one."""
    expected, found = read_summary(whole), read_summary(other)
    before, after = expected.weights_sha256 or "none", found.weights_sha256 or "none"
    weights = Check("weights", before == after, before[:12] if before == after else f"{before[:12]} ≠ {after[:12]}")
    return [weights, _summaries(expected, found), metrics("metrics", journalled(whole), journalled(other))]


def journalled(run: RunDir, until: int | None = None) -> Counter[Value]:
    """Every value of the journal, `until` a step, with the number of its occurrences."""
    points = read_points(run.journal)[0]
    kept = [p for p in points if until is None or p.step <= until]
    return Counter((p.step, name, value.hex()) for p in kept for name, value in p.metrics.items())


def metrics(what: str, expected: Counter[Value], found: Counter[Value]) -> Check:
    """Whether the values are the same, each as often."""
    if expected == found:
        return Check(what, is_same=True, detail=f"{found.total()} values, each once")
    return Check(what, is_same=False, detail=f"first at {differences(expected, found)[0]}")


def differences(expected: Counter[Value], found: Counter[Value]) -> list[ValueDifference]:
    """Every step and metric whose values are not the same, in order."""
    odd = sorted({(step, name) for step, name, _ in (expected - found) + (found - expected)})
    before, after = _by_place(expected), _by_place(found)
    return [ValueDifference(*at, before.get(at, ()), after.get(at, ())) for at in odd]


def relative(a: float, b: float) -> float:
    """Relative difference of two values; none between two that are no numbers."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    apart = abs(a - b) / max(abs(a), abs(b))
    return math.inf if math.isnan(apart) else apart


def _by_place(values: Counter[Value]) -> dict[tuple[int, str], tuple[float, ...]]:
    found: dict[tuple[int, str], tuple[float, ...]] = {}
    for step, name, value in values.elements():
        found[step, name] = (*found.get((step, name), ()), float.fromhex(value))
    return found


def _values(values: tuple[float, ...]) -> str:
    return " and ".join(f"{value:.9g}" for value in values) or "(missing)"


def _summaries(expected: Summary, found: Summary) -> Check:
    before, after = plain(expected), plain(found)
    parts = [
        f"{name} {_shown(a)} ≠ {_shown(b)}"
        for part in SUMMARISED
        for name, a, b in _pairs(part, before.get(part), after.get(part))
        if a != b
    ]
    return Check("summary", not parts, "; ".join(parts) or f"{found.steps} steps, {found.epochs} epochs")


def _pairs(name: str, a: Any, b: Any) -> Iterable[tuple[str, Any, Any]]:
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [(name, a, b)]
    keys = [key for key in {**a, **b} if key not in _OF_THE_FILE]
    return [(f"{name} {key}", a.get(key), b.get(key)) for key in keys]


def _shown(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
