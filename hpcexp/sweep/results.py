"""What the jobs of a sweep came to: their states, the values they are ranked by, and points over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcexp.errors import did_you_mean, listed
from hpcexp.record.alive import current_state
from hpcexp.record.journal import read_points
from hpcexp.rundir import RunDir, read_json
from hpcexp.sweep.ledger import Entry
from hpcexp.sweep.spec import Objective

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Result:
    """A job and what is known of it."""

    entry: Entry
    state: str
    """`waiting`, `running`, `finished`, `pruned`, `failed`, `killed`, or `not run`."""
    values: tuple[float | None, ...] = ()
    """Of the objectives, in their order; None where the run has not recorded it."""
    cause: str = ""
    """Why it failed."""
    seconds: float | None = None

    @property
    def run(self) -> RunDir:
        return RunDir(Path(self.entry.run))


@dataclass(frozen=True)
class Point:
    """The jobs that differ in nothing but their seed."""

    asked: tuple[str, ...]
    results: tuple[Result, ...]

    def mean(self, objective: int = 0) -> float | None:
        """Over those jobs that have a value; None where none has."""
        found = self.found(objective)
        return statistics.fmean(found) if found else None

    def found(self, objective: int = 0) -> list[float]:
        """Values of the finished jobs."""
        return [
            v for r in self.results if r.state == "finished" and (v := (r.values or (None,))[objective]) is not None
        ]


def read_result(entry: Entry, objectives: Sequence[Objective]) -> Result:
    """What a job's run directory tells."""
    run = RunDir(Path(entry.run))
    status = run.read_status() if entry.run else {}
    state = current_state(status)
    ended = state in ("finished", "pruned", "failed", "killed")
    seconds = status["ended"] - status["started"] if ended and "ended" in status else None
    values = tuple(value_of(run, o) for o in objectives) if state in ("finished", "pruned") else ()
    return Result(entry, "waiting" if state == "planned" else state, values, str(status.get("cause") or ""), seconds)


def value_of(run: RunDir, objective: Objective) -> float | None:
    """The metric of a run: of a validation the best, otherwise the last.

    Beside metrics, every number of `summary.json` has a name: `num_params`, `durations.fit_s`.
    """
    metric, summary = objective.metric, read_json(run.summary)
    best = summary.get("best") or {}
    if best.get("monitor") == metric:
        return _number(best["value"])
    if metric in summary.get("test", {}):
        return _number(summary["test"][metric])
    if (value := _number(_dotted(summary, metric))) is not None:
        return value
    points, _ = read_points(run.journal)
    series = [p.metrics[metric] for p in points if metric in p.metrics and math.isfinite(p.metrics[metric])]
    if not series:
        return None
    return (max if objective.mode == "max" else min)(series) if metric.startswith("val") else series[-1]


def not_recorded(run: RunDir, objectives: Iterable[Objective]) -> str:
    """That a finished run knows nothing of what it is to be ranked by; empty where it does."""
    summary = read_json(run.summary)
    recorded = {key for point in read_points(run.journal)[0] for key in point.metrics} | set(summary.get("test", {}))
    for metric in (objective.metric for objective in objectives):
        if metric not in recorded and _dotted(summary, metric) is None:
            near = did_you_mean(metric, sorted(recorded))
            return f"{metric} is not recorded, only {listed(sorted(recorded))}.\nFix: {near}metric: one of these"
    return ""


def ranked(results: Iterable[Result], objectives: Sequence[Objective]) -> list[Point]:
    """Points, the best first: by the first objective. Those without a value come last, in the order of their jobs."""
    points: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        points.setdefault(point_of(result.entry), []).append(result)
    found = [Point(asked, tuple(jobs)) for asked, jobs in points.items()]
    sign = -1 if objectives and objectives[0].mode == "max" else 1

    def worth(point: Point) -> tuple[bool, float, int]:
        mean = point.mean()
        return mean is None, sign * (mean or 0.0), point.results[0].entry.job

    return sorted(found, key=worth)


def point_of(entry: Entry) -> tuple[str, ...]:
    """What was asked, without the seed."""
    return tuple(asked for asked in entry.asked if not asked.startswith("seed="))


def half_width(values: Sequence[float]) -> float | None:
    """Half of the confidence interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # 0.1 s, for the end of a sweep

    t = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return t * statistics.stdev(values) / math.sqrt(len(values))


def _dotted(tree: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
