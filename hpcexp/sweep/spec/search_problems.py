"""What is wrong with a search, reported before its first job. Does not import Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from hpcexp.errors import did_you_mean, listed
from hpcexp.schema.keys import REPEATS, options
from hpcexp.schema.sweep import Search
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec, repeats, searched
from hpcexp.sweep.spec.values import grid_size, last_value
from hpcexp.tracking.mlflow.uri import database_problem

MODES = ("max", "min")
MAX_GRID = 100_000
"""The largest grid: its points are shuffled, which lists all of them beforehand."""
_PACKAGES = {"optuna": "optuna", "cmaes": "cmaes"}


def unfit(spec: Spec, objectives: tuple[Objective, ...], max_epochs: int | None) -> list[str]:
    """Every reason why `spec` cannot be searched; empty if it can, or is not a search.

    `objectives` are those of the spec, or `trainer.monitor` where it has none; `max_epochs` is `trainer.max_epochs`.
    """
    if spec.search is None:
        return []
    return [
        *_unknown(spec.search),
        *(problem for name, axis in searched(spec).items() for problem in _axis_problems(name, axis)),
        *_shape_problems(spec, spec.search),
        *_sampler_problems(searched(spec), spec.search.sampler, objectives),
        *_pruner_problems(spec, spec.search.pruner, objectives, max_epochs),
        *_objective_problems(objectives),
        *_missing_packages(spec.search),
    ]


def _unknown(search: Search) -> Iterator[str]:
    for key, value in (("sampler", search.sampler), ("pruner", search.pruner)):
        valid = options(Search, key)
        if value not in valid:
            yield f"search.{key}={value} is unknown. {did_you_mean(value, valid)}Valid are: {listed(valid)}."


def _axis_problems(name: str, axis: Axis) -> Iterator[str]:
    if isinstance(axis, Choices):
        if not axis.values or len(set(axis.values)) < len(axis.values):
            yield f"{name} has no values, or one twice: {listed(axis.values)}.\nFix: name each value once."
        return
    low, high = float(axis.low), float(axis.high)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        yield f"{name} has no values from {low:g} to {high:g}.\nFix: the lower end first."
    elif axis.is_log and low <= 0:
        yield f"{name} cannot be searched by factors (log) from {low:g}.\nFix: begin above 0, or leave log out."
    elif axis.is_int and not (low.is_integer() and high.is_integer()):
        yield f"{name} is of whole numbers, from {low:g} to {high:g}.\nFix: whole numbers at both ends."
    elif axis.step is not None:
        yield from _step_problems(name, axis, axis.step)


def _step_problems(name: str, axis: Interval, step: float) -> Iterator[str]:
    if step <= 0 or (axis.is_int and not float(step).is_integer()):
        yield f"{name} cannot go in steps of {step:g}.\nFix: a step above 0, whole where the numbers are."
    elif axis.is_log:
        yield f"{name} cannot go by factors (log) and in steps of {step:g}.\nFix: leave one of them out."
    elif (last := last_value(axis)) != axis.high:
        yield f"{name} never reaches {axis.high:g} from {axis.low:g} in steps of {step:g}.\nFix: end at {last:g}."


def _shape_problems(spec: Spec, search: Search) -> Iterator[str]:
    trials, budget = spec.budget.trials, spec.budget
    if not searched(spec):
        yield "A search has no axes: there is nothing to choose.\nFix: optimizer.lr=interval(0.0001,0.1)"
    if ranges := [key for key, axis in spec.axes.items() if key in REPEATS and isinstance(axis, Interval)]:
        yield f"{ranges[0]} repeats each trial and is not searched.\nFix: {ranges[0]}=0,1,2, single values."
    if spec.points:
        yield "A search takes no points beside its axes: they would not be run.\nFix: leave search or the points out."
    if trials is not None and trials < 1:
        yield f"budget.trials={trials} runs nothing.\nFix: budget.trials=30"
    if search.sampler != "grid" and trials is None and not (budget.hours or budget.core_hours or budget.gpu_hours):
        yield f"search.sampler={search.sampler} never ends.\nFix: budget.trials=30"


def _sampler_problems(axes: Mapping[str, Axis], sampler: str, objectives: tuple[Objective, ...]) -> Iterator[str]:
    if sampler == "grid":
        yield from _grid_problems(axes)
    if sampler != "cmaes":
        return
    for name, axis in axes.items():
        if isinstance(axis, Choices):
            yield (
                f"search.sampler=cmaes cannot search {name}={','.join(axis.values)}: it takes ranges of numbers.\n"
                f"Fix: {name}=interval(…), or search.sampler=tpe."
            )
    if len([a for a in axes.values() if isinstance(a, Interval) and a.low < a.high]) == 1:
        yield "search.sampler=cmaes needs two axes at least: it learns how they go together.\nFix: search.sampler=tpe"
    if len(objectives) > 1:
        yield f"search.sampler=cmaes has one objective, not {len(objectives)}.\nFix: search.sampler=nsga2, or tpe."


def _grid_problems(axes: Mapping[str, Axis]) -> Iterator[str]:
    endless = [n for n, a in axes.items() if isinstance(a, Interval) and not a.is_int and not a.step and a.low < a.high]
    for name in endless:
        yield (
            f"search.sampler=grid cannot count the values of {name}: it has no step.\n"
            f"Fix: {name}=range(…,step=…) or single values, or search.sampler=random."
        )
    if not endless and (size := grid_size(axes)) > MAX_GRID:
        yield f"The grid has {size:,} points, more than {MAX_GRID:,}.\nFix: search.sampler=random, or tpe."


def _pruner_problems(
    spec: Spec, pruner: str, objectives: tuple[Objective, ...], max_epochs: int | None
) -> Iterator[str]:
    if pruner == "none":
        return
    if len(objectives) > 1:
        yield (
            f"search.pruner={pruner} has one objective to judge by, not {len(objectives)}.\n"
            "Fix: search.pruner=none, or one objective."
        )
    for objective in objectives:
        if objective.metric.startswith("test/"):
            yield (
                f"search.pruner={pruner} cannot judge by {objective.metric}: it is known only after training.\n"
                f"Fix: a metric of the validation, as {objective.metric.replace('test/', 'val/')}."
            )
    if (number := len(repeats(spec))) > 1:
        yield (
            f"search.pruner={pruner} judges a trial by one run, and here each has {number} (seeds, folds).\n"
            "Fix: search.pruner=none, or one seed and fold."
        )
    if pruner == "hyperband" and (max_epochs is None or "trainer.max_epochs" in spec.axes):
        yield (
            "search.pruner=hyperband shares out the epochs of the longest run, which trainer.max_epochs does not say.\n"
            "Fix: trainer.max_epochs=30 for all trials, or search.pruner=asha."
        )


def _objective_problems(objectives: tuple[Objective, ...]) -> Iterator[str]:
    for objective in objectives:
        if objective.mode not in MODES:
            yield f"{objective.metric} is to be {objective.mode}.\nFix: one of {listed(MODES)}."
    metrics = [objective.metric for objective in objectives]
    if not metrics or len(set(metrics)) < len(metrics):
        yield f"A search has objectives, each once: {listed(metrics)}.\nFix: name each metric once."


def _missing_packages(search: Search) -> Iterator[str]:
    needed = ["optuna", *(["cmaes"] if search.sampler == "cmaes" else [])]
    if missing := [package for package in needed if find_spec(package) is None]:
        yield f"A search needs {listed(missing)}, which is not installed.\nFix: pip install 'hpcexp[optuna]'"
    if search.storage is not None and (problem := database_problem(search.storage, "search.storage")):
        yield problem
