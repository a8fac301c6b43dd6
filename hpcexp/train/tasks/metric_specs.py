"""Metrics as `task.metrics` names them: which they are, which direction is better. Without torch, for planning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from hpcexp.errors import did_you_mean, listed
from hpcexp.schema.keys import TARGET
from hpcexp.targets.class_constants import class_constant
from hpcexp.targets.nodes import wrong_target
from hpcexp.targets.source_code import Missing, locate, names_in
from hpcexp.train.tasks.task import Mode

OWN_OF_CLASSES: dict[str, Mode] = {"acc": "max", "top5": "max"}
OWN_OF_VALUES: dict[str, Mode] = {"mse": "min", "mae": "min"}
"""hpcexp's own metrics: sums over samples, without any state."""

_ALIASES = {"f1": "f1score", "ap": "averageprecision", "kappa": "cohenkappa", "mcc": "matthewscorrcoef"}
_ALIASES |= {"iou": "jaccardindex", "ece": "calibrationerror", "acc": "accuracy", "r2": "r2score"}
_ALIASES |= {"mape": "meanabsolutepercentageerror", "rmse": "meansquarederror", "pearson": "pearsoncorrcoef"}
_ALIASES |= {"spearman": "spearmancorrcoef", "mse": "meansquarederror", "mae": "meanabsoluteerror"}
"""Usual names → a class of torchmetrics, in small letters without what its kind puts before."""
_DEFAULTS: dict[str, dict[str, Any]] = {"rmse": {"squared": False}}
_PLACES = {"Multiclass": "torchmetrics.classification", "Multilabel": "torchmetrics.classification"}


class MetricSpec(NamedTuple):
    """One entry of `task.metrics`."""

    name: str
    """As it is reported, behind `val/` and `test/`."""
    mode: Mode | None
    """None where nobody says which direction is better."""
    metric: str = ""
    """Of hpcexp's own, its name there."""
    target: str | None = None
    """Dotted name of a torchmetrics class; None for one of hpcexp's own."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Those that the configuration gives."""

    def __deepcopy__(self, memo: Any) -> MetricSpec:
        """Itself, a value: callbacks that average weights copy the module with its task."""
        return self


def metric_specs(entries: Any, kind: str, own: Mapping[str, Mode]) -> tuple[list[MetricSpec], list[str]]:
    """The metrics of a task and what is wrong with them.

    `kind`: `Multiclass`, `Multilabel`, or empty for values; `own`: metrics of hpcexp's own that fit it.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        return [], [f"task.metrics={entries}: not a list.\nFix: 'task.metrics=[{listed(own)}]'"]
    specs, problems = [], []
    for entry in entries:
        found = _spec(entry, kind, own)
        if isinstance(found, MetricSpec):
            specs.append(found)
        else:
            problems.append(found)
    names = ["loss", *(spec.name for spec in specs)]
    problems += [
        f"task.metrics: {name} is there twice.\nFix: leave one out, or give it another `name`."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    return specs, problems


def modes(specs: Iterable[MetricSpec]) -> dict[str, Mode | None]:
    """Name → direction, with that of the loss."""
    return {"loss": "min", **{spec.name: spec.mode for spec in specs}}


def _spec(entry: Any, kind: str, own: Mapping[str, Mode]) -> MetricSpec | str:
    if isinstance(entry, str):
        return _named(entry, entry, {}, None, kind, own)
    if not isinstance(entry, Mapping) or not (TARGET in entry) ^ ("metric" in entry):
        why = "neither a name nor a mapping with `metric: NAME` or `_target_`"
        return f"task.metrics={entry}: {why}.\nFix: {_options(kind, own)}"
    given = {k: v for k, v in entry.items() if k not in ("name", "mode", "metric")}
    mode = entry.get("mode")
    if mode not in (None, "max", "min"):
        return f"task.metrics={entry}: mode={mode} is neither max nor min."
    if "metric" in entry:
        return _named(str(entry.get("name", entry["metric"])), str(entry["metric"]), given, mode, kind, own)
    target = str(given.pop(TARGET))
    found = locate(target)
    if isinstance(found, Missing):
        return wrong_target("task.metrics", target, found.reason)
    name = str(entry.get("name") or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target.rpartition(".")[2]).lower())
    return MetricSpec(name, mode or _direction(target), target=target, arguments=given)


def _named(
    name: str, metric: str, arguments: dict[str, Any], mode: Mode | None, kind: str, own: Mapping[str, Mode]
) -> MetricSpec | str:
    if metric in own and not arguments:
        return MetricSpec(name, mode or own[metric], metric=metric)
    known = torchmetrics_names(kind)
    plain = re.sub(r"[^a-z0-9]", "", metric.lower())
    found = known.get(_ALIASES.get(plain, plain))
    if found is None:
        return f"task.metrics={metric}: no such metric.\nFix: {_options(kind, own, metric)}"
    given = {**_DEFAULTS.get(plain, {}), **arguments}
    return MetricSpec(name, mode or _direction(found), target=found, arguments=given)


def torchmetrics_names(kind: str) -> dict[str, str]:
    """Classes of torchmetrics for a kind of targets: name in small letters, without the kind → dotted name."""
    module = _PLACES.get(kind, "torchmetrics.regression")
    names = [name for name in names_in(module) if name.startswith(kind) and name[:1].isupper()]
    return {name.removeprefix(kind).lower(): f"{module}.{name}" for name in names}


def _options(kind: str, own: Mapping[str, Mode], metric: str = "") -> str:
    short = [alias for alias, full in _ALIASES.items() if full in torchmetrics_names(kind)]
    usual = sorted({*own, *short})
    near = did_you_mean(metric, usual) if metric else ""
    return f"{near}{listed(usual)}, or the name of another class of torchmetrics."


def _direction(target: str) -> Mode | None:
    better: Any = class_constant(target, "higher_is_better")
    return None if better is None else "max" if better else "min"
