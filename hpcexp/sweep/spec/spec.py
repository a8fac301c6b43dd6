"""The definition of a sweep, from a command line or a file in `sweeps/`: space, search and objectives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpcexp.schema.keys import REPEATS
from hpcexp.schema.sweep import Budget, Search


@dataclass(frozen=True)
class Choices:
    """An axis of single values."""

    values: tuple[str, ...]
    """As typed in an override."""


@dataclass(frozen=True)
class Interval:
    """An axis of numbers between two ends, both of which belong to it."""

    low: float
    high: float
    is_log: bool = False
    """Whether it is searched by factors instead of differences."""
    is_int: bool = False
    step: float | None = None


Axis = Choices | Interval


@dataclass(frozen=True)
class Objective:
    """A metric and which way is better."""

    metric: str
    mode: str
    """`max` or `min`; empty in a definition that leaves it to the task."""


@dataclass(frozen=True)
class Spec:
    """A sweep."""

    name: str
    """Of its directory below `<run.root>/sweeps`."""
    question: str
    base: tuple[str, ...]
    """Overrides of every job."""
    axes: Mapping[str, Axis]
    points: tuple[tuple[str, ...], ...] = ()
    """Overrides of points that are given one by one; combined with the axes where there are both."""
    seeds: tuple[int, ...] = ()
    """A job for each at every point; empty: the seed is as in the base, or an axis."""
    objectives: tuple[Objective, ...] = ()
    """What the points are ranked by; empty: `trainer.monitor`."""
    search: Search | None = None
    """None: every combination of the axes' values."""
    budget: Budget = field(default_factory=Budget)
    is_fail_fast: bool = False
    """Whether a failed job ends the sweep."""


def is_open(spec: Spec) -> bool:
    """Whether its jobs are unknown beforehand."""
    return spec.search is not None or not (spec.axes or spec.points or spec.seeds)


def searched(spec: Spec) -> dict[str, Axis]:
    """The axes that a search chooses on: not those that repeat an experiment."""
    return {key: axis for key, axis in spec.axes.items() if key not in REPEATS}


def repeats(spec: Spec) -> list[tuple[str, ...]]:
    """Overrides of each job of a trial: folds × seeds; one without any where a trial is one job."""
    axes = [(key, spec.axes[key]) for key in spec.axes if key in REPEATS]
    values = [[f"{key}={value}" for value in axis.values] for key, axis in axes if isinstance(axis, Choices)]
    seeds = [[f"seed={seed}" for seed in spec.seeds]] if spec.seeds else []
    return list(itertools.product(*values, *seeds))


def combinations(spec: Spec) -> list[tuple[str, ...]]:
    """Overrides of each job of a sweep without a search, besides the base: points × axes × seeds, the last fastest."""
    axes = [[f"{key}={value}" for value in axis.values] for key, axis in spec.axes.items() if isinstance(axis, Choices)]
    seeds = [[f"seed={seed}" for seed in spec.seeds]] if spec.seeds else []
    points: Sequence[tuple[str, ...]] = spec.points or ((),)
    return [(*point, *rest) for point in points for rest in itertools.product(*axes, *seeds)]
