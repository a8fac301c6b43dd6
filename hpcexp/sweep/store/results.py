"""The results of the jobs of a sweep: their states, the values they are ranked by, and points over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcexp.compare.metrics import numbers, value_of
from hpcexp.compare.statistics import best_first, grouped, mean
from hpcexp.errors import RunError, did_you_mean, listed
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.runs.series import read_series
from hpcexp.schema.keys import REPEATS
from hpcexp.status.state import current_state
from hpcexp.sweep.spec.spec import Objective
from hpcexp.sweep.store.ledger import LedgerEntry


@dataclass(frozen=True)
class Result:
    """A job and what is known of it."""

    entry: LedgerEntry
    state: RunState
    values: tuple[float | None, ...] = ()
    """Of the objectives, in their order; None where the run has not recorded it."""
    cause: str = ""
    """Why it failed."""
    seconds: float | None = None

    @property
    def run(self) -> RunDir:
        return RunDir(Path(self.entry.run))


@dataclass(frozen=True)
class PointResults:
    """The jobs that differ in nothing but their seed and fold."""

    overrides: tuple[str, ...]
    results: tuple[Result, ...]

    def mean(self, objective: int = 0) -> float | None:
        """Over those jobs that have a value; None where none has."""
        return mean(self.found(objective))

    def found(self, objective: int = 0) -> list[float]:
        """Values of the finished jobs."""
        finished = [result.values or (None,) for result in self.results if result.state is RunState.FINISHED]
        return [value for values in finished if (value := values[objective]) is not None]


def read_result(entry: LedgerEntry, objectives: Sequence[Objective]) -> Result:
    """The result in a job's run directory; a damaged one has failed."""
    try:
        return _result(entry, objectives)
    except RunError as e:
        return Result(entry, RunState.FAILED, (None,) * len(objectives), str(e))


def _result(entry: LedgerEntry, objectives: Sequence[Objective]) -> Result:
    run = RunDir(Path(entry.run))
    status = read_status(run) if entry.run else Status()
    state = current_state(run, status)
    seconds = status.seconds if state.is_final else None
    has_values = state in (RunState.FINISHED, RunState.PRUNED)
    values = tuple(value_of(run, o.metric, o.mode) for o in objectives) if has_values else ()
    return Result(entry, RunState.WAITING if state is RunState.PLANNED else state, values, status.cause or "", seconds)


def not_recorded(run: RunDir, objectives: Iterable[Objective]) -> str:
    """A message if a finished run does not record what it is ranked by; else empty."""
    summary = read_summary(run)
    recorded = read_series(run.journal).keys() | set(summary.test)
    known = recorded | numbers(summary).keys()
    for metric in (objective.metric for objective in objectives):
        if metric not in known:
            near = did_you_mean(metric, sorted(recorded))
            return f"{metric} is not recorded, only {listed(sorted(recorded))}.\nFix: {near}metric: one of these"
    return ""


def ranked(results: Iterable[Result], objectives: Sequence[Objective]) -> list[PointResults]:
    """Points, the best first: by the first objective. Those without a value come last, in the order of their jobs."""
    points = [
        PointResults(overrides, jobs)
        for overrides, jobs in grouped(results, lambda result: point_of(result.entry)).items()
    ]
    return best_first(points, PointResults.mean, objectives[0].mode if objectives else "min")


def point_of(entry: LedgerEntry) -> tuple[str, ...]:
    """What was asked, without the seed and the fold."""
    return tuple(o for o in entry.overrides if o.lstrip("+").partition("=")[0] not in REPEATS)
