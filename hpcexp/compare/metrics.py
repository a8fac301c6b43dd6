"""The results of a run: the numbers of its summary by name, or else of its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpcexp.files.documents import plain
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import Summary, read_summary
from hpcexp.runs.series import Series, read_curve

_ERRORS = ("loss", "err", "error", "mse", "rmse", "mae", "nll", "perplexity", "ppl", "wer", "cer")
_LESS = frozenset((*_ERRORS, "time", "seconds", "durations", "steps", "epochs", "params"))
"""Words in the name of a metric of which less is better."""


def numbers(summary: Summary) -> dict[str, float]:
    """Every number of a `summary.json`: test metrics, what was monitored at its best, and dotted `durations.fit_s`."""
    best = summary.best
    named = {**summary.test, **({best.monitor: best.value} if best else {})}
    found: dict[str, float] = {}
    _collect({key: value for key, value in plain(summary).items() if key != "test"}, "", found)
    _collect(named, "", found)
    return found


def value_of(run: RunDir, metric: str, mode: str) -> float | None:
    """The metric of a run: a number of its summary, else the value of its curve."""
    found = numbers(read_summary(run))
    return found[metric] if metric in found else curve_value(metric, read_curve(run.journal, metric), mode)


def curve_value(metric: str, curve: Series, mode: str) -> float | None:
    """Of a validation the best, otherwise the last; None where there is none."""
    values = [value for value in curve.values if math.isfinite(value)]
    if not values:
        return None
    return (max if mode == "max" else min)(values) if metric.startswith("val") else values[-1]


def guessed_mode(metric: str) -> str:
    """`min` where the name says an error, a time or a size, otherwise `max`."""
    words = metric.lower().replace("/", "_").replace(".", "_").replace("-", "_").split("_")
    return "min" if _LESS.intersection(words) else "max"


def _collect(tree: Mapping[str, Any], prefix: str, found: dict[str, float]) -> None:
    """Put every finite number into `found`. Types as JSON makes them: isinstance would take a tenth of the command."""
    for key, value in tree.items():
        kind = type(value)
        if kind is float or kind is int:
            if math.isfinite(value):
                found[prefix + key] = float(value)
        elif kind is dict:
            _collect(value, f"{prefix}{key}.", found)
