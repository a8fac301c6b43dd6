"""Studies of searches, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed")

from hpcexp.runs.records.status import RunState
from hpcexp.schema.sweep import Budget, Search
from hpcexp.sweep.search.study import Study, Trial
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec

ACC = (Objective("val/acc", "max"),)
BOTH = (Objective("val/acc", "max"), Objective("val/loss", "min"))
LR, WIDTH, MODEL = Interval(1e-4, 1e-1, is_log=True), Interval(1, 8, is_int=True), Choices(("cnn", "mlp"))
AXES: dict[str, Axis] = {"optimizer.lr": LR, "model.width": WIDTH, "model": MODEL}
FLAT: dict[str, Axis] = {"a": LR, "b": WIDTH}


def spec_of(
    sampler: str = "random",
    axes: dict[str, Axis] | None = None,
    trials: int | None = 8,
    objectives: tuple[Objective, ...] = (),
    **search: Any,
) -> Spec:
    """A search."""
    overrides = Search(sampler, **search)
    return Spec("s", "", (), axes or AXES, objectives=objectives, search=overrides, budget=Budget(trials=trials))


OPEN: list[Study] = []


def opened(place: Path, spec: Spec, objectives: tuple[Objective, ...] = ACC, max_epochs: int = 27) -> Study:
    OPEN.append(Study(spec, objectives, place, project=place, max_epochs=max_epochs))
    return OPEN[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No study outlives its test."""
    yield
    while OPEN:
        OPEN.pop().close()


def run(study: Study, num: int, value: Callable[[Trial], float] = lambda trial: trial.number / 10) -> list[Trial]:
    """Ask for `num` trials and tell each its value."""
    trials = []
    for _ in range(num):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, RunState.FINISHED, [value(trial)] * len(study.objectives))
        trials.append(trial)
    return trials


def drawn(trials: list[Trial]) -> list[tuple[str, ...]]:
    return [trial.overrides for trial in trials]
