"""What a search cannot do is said before anything starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from studies import ACC, BOTH, FLAT, LR, MODEL, WIDTH, spec_of

from hpcexp.sweep.spec.search_problems import unfit
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec


@pytest.mark.parametrize(
    ("spec", "objectives", "told"),
    [
        (spec_of("cma"), ACC, "search.sampler=cma is unknown. Did you mean 'cmaes'?"),
        (spec_of("tpe", pruner="hyper"), ACC, "search.pruner=hyper is unknown"),
        (spec_of("cmaes"), ACC, "search.sampler=cmaes cannot search model=cnn,mlp"),
        (spec_of("cmaes", {"a": LR}), ACC, "needs two axes"),
        (spec_of("cmaes", FLAT), BOTH, "has one objective, not 2"),
        (spec_of("tpe", FLAT, pruner="median"), BOTH, "search.pruner=median has one objective"),
        (spec_of("grid", FLAT), ACC, "search.sampler=grid cannot count the values of a"),
        (spec_of("grid", {"a": Interval(0, 1e6, is_int=True)}), ACC, "1,000,001 points"),
        (spec_of("tpe", trials=None), ACC, "never ends"),
        (spec_of("tpe", trials=0), ACC, "budget.trials=0"),
        (spec_of("tpe", {"a": Interval(2, 1)}), ACC, "no values from 2 to 1"),
        (spec_of("tpe", {"a": Interval(0, 1, is_log=True)}), ACC, "by factors (log) from 0"),
        (spec_of("tpe", {"a": Interval(0.5, 8, is_int=True)}), ACC, "whole numbers"),
        (spec_of("tpe", {"a": Interval(1, 8, is_int=True, step=3)}), ACC, "Fix: end at 7"),
        (spec_of("tpe", {"a": Interval(1, 8, is_log=True, step=1)}), ACC, "leave one of them out"),
        (spec_of("tpe", {"a": Choices(("x", "x"))}), ACC, "name each value once"),
        (spec_of("tpe", FLAT, pruner="asha"), (Objective("test/acc", "max"),), "as val/acc"),
        (spec_of("tpe", FLAT), (Objective("val/acc", "maximal"),), "Fix: one of max, min"),
        (replace(spec_of("tpe", FLAT, pruner="asha"), seeds=(1, 2)), ACC, "one seed"),
        (replace(spec_of("tpe", FLAT), points=(("a=1",),)), ACC, "takes no points"),
        (spec_of("tpe", {**FLAT, "trainer.max_epochs": WIDTH}, pruner="hyperband"), ACC, "trainer.max_epochs"),
        (spec_of("tpe", storage="redis://host"), ACC, "search.storage=redis://host is no database"),
        (spec_of("tpe", storage="mysql+nodriver://u:pw@h/d"), ACC, "pip install nodriver"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_starts(
    spec: Spec, objectives: tuple[Objective, ...], told: str
) -> None:
    """In words of the configuration."""
    problems = unfit(spec, objectives, 30)
    assert 1 == len(problems), problems
    assert told in problems[0]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_what_fits_has_no_problem(sampler: str) -> None:
    """Several objectives are for all but cmaes."""
    axes: dict[str, Axis] = {"a": Interval(0.1, 1.0, step=0.1), "b": WIDTH, "c": MODEL}
    assert [] == unfit(spec_of(sampler, axes), BOTH, None)
    assert [] == unfit(spec_of(sampler, axes, pruner="hyperband"), ACC, 30)
    assert [] == unfit(spec_of("cmaes", FLAT, pruner="asha"), ACC, 30)
    assert [] == unfit(replace(spec_of(), search=None), (), None)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what installs them."""
    monkeypatch.setattr("hpcexp.sweep.spec.search_problems.find_spec", lambda name: None)
    assert ["A search needs cmaes, optuna, which is not installed.\nFix: pip install 'hpcexp[optuna]'"] == unfit(
        spec_of("cmaes", FLAT), ACC, 30
    )
