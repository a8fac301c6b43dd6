"""torchmetrics objects of `task.metrics`."""

from __future__ import annotations

import warnings
from typing import Any

from torchmetrics import Metric

from hpcexp.data_spec import Classes, DataSpec
from hpcexp.errors import ConfigError
from hpcexp.schema.keys import TARGET
from hpcexp.targets.instantiate import instantiate, parameters, resolve
from hpcexp.train.tasks.metric_specs import MetricSpec


def make_aggregate(spec: MetricSpec, data: DataSpec | None) -> Metric:
    """The metric, with what follows from the data where it takes that and the configuration does not say it."""
    path = f"task.metrics.{spec.name}"
    assert spec.target is not None
    taken = parameters(resolve(spec.target, path))
    known = {k: v for k, v in _known(data).items() if k in taken and k not in spec.arguments}
    with warnings.catch_warnings():
        # Exactness needs all of an evaluation set; a metric with `thresholds` keeps counts instead.
        warnings.filterwarnings("ignore", message=".*will save all targets and predictions in")
        metric = instantiate({TARGET: spec.target, **known, **spec.arguments}, path=path)
    if not isinstance(metric, Metric):
        raise ConfigError(
            f"task.metrics: {spec.target} gives a {type(metric).__name__}, which is no torchmetrics.Metric: nothing "
            "says how its values of several batches and ranks are one.\nFix: a subclass of torchmetrics.Metric."
        )
    metric.sync_on_compute = metric._to_sync = False
    return metric


def _known(data: DataSpec | None) -> dict[str, Any]:
    if data is None or data.targets is None:
        return {}
    targets, outputs = data.targets, data.targets.num_outputs
    if not isinstance(targets, Classes):
        return {"num_outputs": outputs} if outputs > 1 else {}
    kind = "multilabel" if targets.multiple else "multiclass"
    return {"num_labels" if targets.multiple else "num_classes": outputs, "task": kind}
