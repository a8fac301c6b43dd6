"""Saved views of an experiment's runs: columns, order and charts that MLflow's interface opens by name or link.

They are tags of the experiment, as its menu `Views` writes them (MLflow 3.17).
"""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

from hpcexp.runs.records.sweep import SweepRecord
from hpcexp.text.key_names import legal_key

RESULTS_KEY = "hpcexp"
"""What a link to the view `Results` calls it."""
_TAG = "mlflow.sharedViewState."
_LONGEST = 5000
"""Characters of an experiment's tag."""
_RESULTS = ("test/acc", "test/loss", "val/acc", "val/loss")
_OURS = {"isReordered": False, "deleted": False, "isGenerated": False}
"""Of charts and sections that MLflow is to leave as they are."""


def results_view(now_ms: int) -> dict[str, str]:
    """The tag of the view `Results`: every run and sweep, the latest first, with their results."""
    columns = [_metric(f"best/{key}") for key in ("test/acc", "val/acc")] + [_metric(key) for key in _RESULTS]
    params = [_param(key) for key in ("model._target_", "optimizer.lr", "seed")]
    return _view(RESULTS_KEY, "Results", now_ms, {"selectedColumns": [*columns, *params, "attributes.`Models`"]})


def sweep_view(asked: SweepRecord, name: str, parent: str, now_ms: int) -> dict[str, str]:
    """The tag of a sweep's view: its jobs, the best first, with their axes, and parallel coordinates of them."""
    axes, objectives = list(map(legal_key, asked.axes)), asked.objectives
    metrics = [legal_key(objective.metric) for objective in objectives]
    section = _uuid(name, "section")
    parallel: dict[str, Any] = {
        "type": "PARALLEL",
        "selectedParams": axes,
        "selectedMetrics": metrics,
        "showAllRuns": True,
    }
    bars: list[dict[str, Any]] = [{"type": "BAR", "metricKey": key, "displayName": key} for key in metrics]
    state: dict[str, Any] = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "selectedColumns": [*map(_param, axes), *map(_metric, dict.fromkeys([*metrics, *_RESULTS[:1]]))],
        "compareRunCharts": [
            _chart(chart, _uuid(name, str(i)), section) for i, chart in enumerate([parallel, *bars] if metrics else [])
        ],
        "compareRunSections": [{"uuid": section, "name": name, "display": True, **_OURS}],
        "isAccordionReordered": True,
    }
    if objectives:
        state |= {"orderByKey": _metric(metrics[0]), "orderByAsc": objectives[0].mode == "min"}
    return _view(view_key(name), f"Sweep {name}", now_ms, state)


def view_key(sweep: str) -> str:
    """What a link to the view of a sweep calls it."""
    return legal_key(f"sweep-{sweep}")


def _view(key: str, name: str, now_ms: int, state: Mapping[str, Any]) -> dict[str, str]:
    """Nothing where it would be cut, which MLflow's interface could not read."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    value = json.dumps({"name": name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"})
    return {f"{_TAG}{key}": value} if len(value) <= _LONGEST else {}


def _chart(chart: Mapping[str, Any], key: str, section: str) -> dict[str, Any]:
    return {"uuid": key, "metricSectionId": section, "runsCountToCompare": 10, **_OURS, **chart}


def _uuid(*words: str) -> str:
    """The same for the same words, so that writing a view again changes nothing in it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(words)))


def _metric(key: str) -> str:
    return f"metrics.`{key}`"


def _param(key: str) -> str:
    return f"params.`{key}`"
