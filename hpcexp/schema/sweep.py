"""The typed sweep file: every key of `sweeps/NAME.yaml`, its type, default and range.

Documented as the keys of the configuration are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcexp.schema.keys import MISSING, choice, number


@dataclass(frozen=True)
class Search:
    """How a sweep chooses its points if it does not run all of them."""

    sampler: str = choice(MISSING, "tpe", "cmaes", "random", "grid", "nsga2")
    """How the next point is chosen: `tpe` learns from earlier points; `cmaes` too, for numeric axes only; `random`;
    `grid` runs all points in shuffled order; `nsga2` is for several metrics."""
    pruner: str = choice("none", "none", "median", "asha", "hyperband")
    """Ends a training early if it does worse than others at the same epoch."""
    storage: str | None = None
    """Database of the Optuna study, for example `sqlite:///study.db` or `postgresql://user@host/name`; empty: a file in
    the sweep's directory."""
    study: str | None = None
    """Name of the study in its storage; empty: the sweep's name."""
    seed: int | None = number(None, least=0, most=2**31 - 1)
    """Seed for the choice of points; empty: derived from the study's name."""


@dataclass(frozen=True)
class Budget:
    """When a sweep stops, counted over all its attempts. Jobs that are running then finish."""

    trials: int | None = number(None, least=1)
    """Points that a search tries in total."""
    hours: float | None = number(None, above=0)
    """Hours that the sweep has run."""
    core_hours: float | None = number(None, above=0)
    """Core hours of its jobs."""
    gpu_hours: float | None = number(None, above=0)
    """GPU hours of its jobs."""


@dataclass(eq=False, repr=False)
class SweepFile:
    """A sweep in a file, `sweeps/NAME.yaml`, that `hpcexp sweep NAME` starts or resumes."""

    question: str = MISSING
    """What the sweep investigates; the heading of its page in MLflow."""
    base: list[Any] = field(default_factory=list)
    """Overrides for every job: `[experiment=digits_mlp, trainer.max_epochs=10]`."""
    axes: dict[str, Any] = field(default_factory=dict)
    """Key or config group → its values: a list; text as after `-m` (`range(1,5)`, `glob(*)`); or, for a search,
    `{low: 1e-4, high: 0.1, log: true}` with `int: true` or `step: …`. The sweep runs, or searches, all combinations."""
    points: list[Any] = field(default_factory=list)
    """Individual points, each a mapping `{key: value, …}`; each is combined with the axes."""
    seeds: Any = None
    """Seeds for every point: a count (`5` for 1 to 5) or a list (`[1, 7]`); empty: the seed of the base."""
    metric: Any = None
    """Metric that ranks the points: `val/acc`, `test/loss`, a number in `summary.json` (`num_params`,
    `durations.fit_s`), or several: `{val/acc: max, num_params: min}`; empty: `trainer.monitor`."""
    mode: str | None = choice(None, "max", "min")
    """Whether a higher or lower `metric` is better; empty: `trainer.mode`, for `trainer.monitor`."""
    search: Search | None = None
    """How points are chosen: the keys below; empty: every combination."""
    budget: Budget = field(default_factory=Budget)
    """When the sweep stops: the keys below."""
    on_failure: str = choice("continue", "continue", "stop")
    """Whether the other jobs continue or stop after one fails."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Sweeps that run one after the other: name → keys of a sweep, above those of the file. In a later one,
    `${best:NAME}` as a value is the run that did best in stage NAME. Finished stages do not run again."""
