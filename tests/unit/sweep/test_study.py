"""The study of a search: what it refuses, what it draws, and what it learns from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import (
    ACC,
    AXES,
    BOTH,
    LR,
    MODEL,
    WIDTH,
    _closed,  # noqa: F401 - a fixture
    drawn,
    opened,
    run,
    spec_of,
)

from hpcexp.errors import ConfigError
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective
from hpcexp.sweep.spec.values import grid_point, grid_size, typed_value


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", "grid", "nsga2"])
def test_every_sampler_finds_points_of_the_space(tmp_path: Path, sampler: str) -> None:
    """Values that are typed as they are, within their ends; a trial for each."""
    axes: dict[str, Axis] = {"a": Interval(0.1, 0.5, step=0.1), "b": WIDTH}
    if sampler != "cmaes":
        axes |= {"c": MODEL}
    study = opened(tmp_path, spec_of(sampler, axes, 14))
    for trial in run(study, 14, lambda trial: float(trial.params["a"])):
        assert list(axes) == list(trial.params)
        assert 0.1 <= float(trial.params["a"]) <= 0.5
        assert 1 <= int(trial.params["b"]) <= 8
    assert study.is_exhausted()
    assert study.ask() is None


def test_a_study_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    """And not its first points once more."""
    whole = drawn(run(opened(tmp_path / "whole", spec_of(seed=1)), 8))
    first = drawn(run(opened(tmp_path / "parts", spec_of(seed=1)), 4))
    rest = drawn(run(opened(tmp_path / "parts", spec_of(seed=1)), 4))
    assert whole == first + rest
    assert 8 == len(set(whole))


def test_searches_of_neighbouring_seeds_have_no_point_in_common(tmp_path: Path) -> None:
    """Nor have studies of other names that are given no seed."""
    one, other = (drawn(run(opened(tmp_path / str(s), spec_of(seed=s)), 8)) for s in (1, 2))
    assert not set(one) & set(other)
    unnamed, named = (drawn(run(opened(tmp_path / "x", spec_of(study=name)), 8)) for name in ("x", "y"))
    assert not set(unnamed) & set(named)


def test_the_budget_is_of_all_continuations(tmp_path: Path) -> None:
    """Failed and pruned trials count; a running one does too, and can resume."""
    study = opened(tmp_path, spec_of(trials=4))
    run(study, 1)
    for state in (RunState.FAILED, RunState.PRUNED):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, state)
    running = study.ask()
    assert running is not None
    study.note_job(running.number, 17)

    again = opened(tmp_path, spec_of(trials=4))
    assert again.is_exhausted()
    assert again.ask() is None
    assert [replace(running, job=17)] == again.unfinished()
    assert (1, 1, 1, 1) == tuple(vars(again.counts()).values())

    more = opened(tmp_path, spec_of(trials=5, sampler="tpe"))
    run(more, 1)
    assert more.is_exhausted()


def test_a_trial_whose_driver_died_while_asking_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no values, and nobody will run it; one that is being asked for right now is left alone."""
    study = opened(tmp_path, spec_of(trials=2))
    study.optuna.ask().suggest_categorical("model", ("cnn", "mlp"))
    assert [] == study.unfinished()
    assert 1 == study.counts().running
    monkeypatch.setattr("hpcexp.sweep.search.study._ABANDONED_S", -1.0)
    assert [] == study.unfinished()
    assert 0 == study.counts().total
    assert [1, 2] == [trial.number for trial in run(study, 2)]
    assert study.is_exhausted()


def test_a_grid_gives_every_point_once(tmp_path: Path) -> None:
    """Also when it resumes under another seed, and then ends."""
    axes: dict[str, Axis] = {"a": Choices(("x", "y", "z")), "b": Interval(0.0, 1.0, step=0.25)}
    first = run(opened(tmp_path, spec_of("grid", axes, 7)), 7)
    rest = run(opened(tmp_path, spec_of("grid", axes, None, seed=9)), 8)
    study = opened(tmp_path, spec_of("grid", axes, None))
    assert study.is_exhausted()
    assert {(a, b) for a in "xyz" for b in ("0.0", "0.25", "0.5", "0.75", "1.0")} == {
        (trial.params["a"], trial.params["b"]) for trial in first + rest
    }


def test_values_are_typed_to_the_last_bit() -> None:
    """Steps are counted as they are written."""
    assert ["0.30000000000000004", "1e-05", "3", "cnn"] == [typed_value(v) for v in (0.1 + 0.2, 1e-5, 3, "cnn")]
    axes: dict[str, Axis] = {"a": Interval(0.1, 1.0, step=0.1), "b": Choices(("x", "y"))}
    assert 20 == grid_size(axes)
    assert [{"a": 0.1, "b": "x"}, {"a": 0.1, "b": "y"}, {"a": 0.2, "b": "x"}] == [grid_point(axes, n) for n in range(3)]
    assert {"a": 0.3, "b": "y"} == grid_point(axes, 5)


def test_a_second_try_that_finishes_is_learned_from(tmp_path: Path) -> None:
    """Once, and it does not count."""
    study = opened(tmp_path, spec_of(trials=3))
    run(study, 1)
    trial = study.ask()
    assert trial is not None
    study.tell(trial.number, RunState.FAILED)
    for _ in range(2):
        study.tell(trial.number, RunState.FINISHED, [0.9])
    assert [1] == study.best()
    assert (1, 0, 1, 0) == tuple(vars(study.counts()).values())
    assert 1 == len(run(study, 1))


def test_what_diverged_is_the_worst(tmp_path: Path) -> None:
    """Whichever way is better."""
    study = opened(tmp_path, spec_of(), BOTH)
    for values in ([0.5, 1.0], [None, float("nan")]):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, RunState.FINISHED, values)
    assert [[0.5, 1.0], [-float("inf"), float("inf")]] == [trial.values for trial in study.optuna.trials]
    assert [0] == study.best()


@pytest.mark.parametrize(("sampler", "objectives"), [("tpe", ACC), ("tpe", BOTH), ("nsga2", BOTH), ("cmaes", ACC)])
def test_samplers_bear_what_diverged(tmp_path: Path, sampler: str, objectives: tuple[Objective, ...]) -> None:
    """And go on."""
    axes: dict[str, Axis] = {"a": LR, "b": Interval(0.0, 1.0)}
    study = opened(tmp_path, spec_of(sampler, axes, 25), objectives)
    assert 25 == len(run(study, 25, lambda trial: float("nan") if float(trial.params["a"]) > 0.01 else 0.5))


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_pruners_end_the_worse_trials(tmp_path: Path, pruner: str) -> None:
    """What a continued run reports again is judged as before, also by another driver."""
    spec = spec_of(trials=20, pruner=pruner)
    study = opened(tmp_path, spec, max_epochs=9)
    ends = Counter[str]()
    for _ in range(20):
        trial = study.ask()
        assert trial is not None
        verdicts = [study.report(trial.number, 1, -float(trial.number))]
        while not verdicts[-1] and len(verdicts) < 9:
            verdicts.append(study.report(trial.number, len(verdicts) + 1, -float(trial.number)))
        assert {bool} == set(map(type, verdicts))  # they go down a pipe as JSON
        end = len(verdicts) if verdicts[-1] else None
        if end is not None and "pruned" not in ends:
            other = opened(tmp_path, spec, max_epochs=9)
            assert [False, True] == [other.report(trial.number, e, -99.0) for e in (end - 1, end)]
        study.tell(
            trial.number,
            RunState.FINISHED if end is None else RunState.PRUNED,
            [-float(trial.number)] if end is None else (),
        )
        ends["finished" if end is None else "pruned"] += 1
    assert ends["pruned"] >= 5
    assert [0] == study.best()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"axes": {**AXES, "x": MODEL}}, "x: cnn, mlp, was no axis"),
        ({"axes": {"model": MODEL, "model.width": WIDTH}}, "optimizer.lr: was 0.0001 to 0.1 (log), is no axis now"),
        (
            {"axes": {**AXES, "optimizer.lr": Interval(1e-4, 1.0)}},
            "optimizer.lr: was 0.0001 to 0.1 (log), now 0.0001 to 1",
        ),
        ({"axes": {**AXES, "model": Choices(("cnn", "vit"))}}, "model: was cnn, mlp, now cnn, vit"),
    ],
)
def test_another_space_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """By what has changed."""
    opened(tmp_path, spec_of())
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, spec_of(**change))
    assert told in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_other_objectives_are_refused(tmp_path: Path) -> None:
    """Also the other way round; another sampler, pruner or budget is taken."""
    opened(tmp_path, spec_of())
    for other in ((Objective("val/acc", "min"),), (Objective("val/loss", "max"),), BOTH):
        with pytest.raises(ConfigError, match="objectives: was val/acc max, now"):
            opened(tmp_path, spec_of(), other)
    run(opened(tmp_path, spec_of("tpe", trials=99, pruner="median", seed=5)), 1)


@pytest.mark.parametrize(
    ("num", "objectives", "expected"),
    [
        (0, ACC, []),
        (1, ACC, ["history", "epochs"]),
        (2, BOTH, ["history-val~acc", "history-val~loss", "pareto"]),
        (8, ACC, ["history", "importances", "parallel", "epochs"]),
    ],
)
def test_pictures_are_of_what_there_is(
    tmp_path: Path, num: int, objectives: tuple[Objective, ...], expected: list[str]
) -> None:
    """Nothing that few trials, failed or diverged ones cannot tell."""
    from hpcexp.sweep.search.plots import draw_study

    study = opened(tmp_path, spec_of(trials=12, pruner="median" if len(objectives) == 1 else "none"), objectives)
    for _ in range(num):
        trial = study.ask()
        assert trial is not None
        if len(objectives) == 1:
            study.report(trial.number, 1, 0.5)
        study.tell(trial.number, RunState.FINISHED, [trial.number / 10] * len(objectives))
    for state in (RunState.FAILED, RunState.FINISHED) if num else ():
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, state, [None] * len(objectives) if state == RunState.FINISHED else ())
    drawn = draw_study(study, tmp_path / "plots")
    assert [f"{name}.png" for name in expected] == [file.name for file in drawn]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
