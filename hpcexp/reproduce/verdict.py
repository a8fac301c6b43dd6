"""The result of a rerun, compared with its run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from hpcexp.compare.bitwise import Check, Value, ValueDifference, compared, differences, journalled, metrics
from hpcexp.reproduce.original import Original
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary

Kind = Literal["identical", "within tolerance", "diverged"]


@dataclass(frozen=True)
class ReproduceVerdict:
    """How near the two are."""

    kind: Kind
    checks: tuple[Check, ...]
    num_values: int
    num_metrics: int
    rtol: float
    first: ValueDifference | None
    """The first value that is not the same to the bit."""
    beyond: ValueDifference | None
    """The first that is further apart than is tolerated."""
    largest: ValueDifference | None
    """The one that is furthest apart."""


def judged(original: Original, again: RunDir, rtol: float) -> ReproduceVerdict:
    """The rerun compared with its run, as far as both go."""
    expected, found = journalled(original.run, original.until), journalled(again, original.until)
    if not original.is_whole:
        found = _without_the_rest(expected, found)
    ends = [read_summary(run).weights_sha256 for run in (original.run, again)]
    if original.until is None and all(ends):
        checks = compared(original.run, again)
    else:
        checks = [metrics("metrics", expected, found)]
    odd = differences(expected, found)
    largest = max(odd, key=lambda d: d.apart, default=None)
    beyond = next((d for d in odd if d.apart > rtol), None)
    is_same = all(check.is_same for check in checks)
    # Weights may differ where no value does: by how much is then unknown.
    kind: Kind = "identical" if is_same else "within tolerance" if odd and beyond is None else "diverged"
    names = {name for _, name, _ in expected}
    return ReproduceVerdict(
        kind, tuple(checks), expected.total(), len(names), rtol, odd[0] if odd else None, beyond, largest
    )


def _without_the_rest(expected: Counter[Value], found: Counter[Value]) -> Counter[Value]:
    """Without what belongs to the last step of a run that was ended in it."""
    last = max(step for step, _, _ in expected)
    there = {name for step, name, _ in expected if step == last}
    return Counter({value: n for value, n in found.items() if value[0] < last or value[1] in there})
