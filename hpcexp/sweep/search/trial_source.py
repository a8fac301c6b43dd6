"""The jobs of a study's trials: one at a time, once devices are free, without waiting for earlier ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from hpcexp.errors import ConfigError
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.pruner import Pruner
from hpcexp.plan import Plan
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.engine.job_entries import PlannedJob
from hpcexp.sweep.engine.session import Session
from hpcexp.sweep.search.study import Study, Trial
from hpcexp.sweep.store.jobs import Job
from hpcexp.sweep.store.results import read_result

Planner = Callable[[tuple[str, ...]], Plan]
"""The plan of a job with these overrides; ConfigError if there is none."""


@dataclass
class TrialSource:
    """A source of jobs: one for each trial, or for each seed and fold of a trial."""

    study: Study
    session: Session
    plan: Planner
    first: Plan
    """The plan of any job, for jobs that cannot be planned."""
    repeats: Sequence[tuple[str, ...]]
    """Overrides of each job of a trial, beside the trial's."""
    is_known: bool = False
    _left: list[Trial] = field(default_factory=list)
    """Trials that a driver has left unfinished."""
    _waiting: list[Job] = field(default_factory=list)
    _trials: dict[int, int] = field(default_factory=dict)
    """Job number → its trial."""
    _ended: dict[int, dict[int, Outcome]] = field(default_factory=dict)
    """Trial → how those of its jobs ended that have."""
    _is_exhausted: bool = False

    def __post_init__(self) -> None:
        self._left = self.study.unfinished()

    def next(self) -> Job | None:
        """A job of the trial at hand, of one that was left unfinished, or of a new one."""
        while not self._waiting:
            trial = self._next_trial()
            if trial is None:
                return None
            self._waiting = self._jobs(trial)
        return self._waiting.pop(0)

    def is_over(self) -> bool:
        return not self._waiting and not self._left and self._is_exhausted

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Store a trial's result in the study, once its last job has ended."""
        trial = self._trials[job.entry.job]
        ended = self._ended[trial]
        ended[job.entry.job] = outcome
        if len(ended) < len(self.repeats) or any(_is_unfinished(o) for o in ended.values()):
            return
        states = {_state(o) for o in ended.values()}
        state = next(s for s in (RunState.FINISHED, RunState.PRUNED, RunState.FAILED) if s in states)
        self.study.tell(trial, state, self._means(ended) if state is RunState.FINISHED else ())

    def pruner(self, job: Job) -> Pruner | None:
        """The study as a pruner; None if it does not prune."""
        if self.session.spec.search is None or self.session.spec.search.pruner == "none":
            return None
        return Pruner(self.session.objectives[0].metric, partial(self.study.report, self._trials[job.entry.job]))

    def _next_trial(self) -> Trial | None:
        while self._left:
            trial = self._left.pop(0)
            if trial.job is None or not self.session.is_held(trial.job):
                return trial
        if not self._is_exhausted and self.study.is_exhausted():
            self._is_exhausted = True
            self._left = [t for t in self.study.unfinished() if t.number not in self._ended]
            return self._next_trial()
        return None if self._is_exhausted else self.study.ask()

    def _jobs(self, trial: Trial) -> list[Job]:
        asked = [(*trial.overrides, *repeat) for repeat in self.repeats]
        entered = self.session.jobs.enter([self._job(overrides, trial.number) for overrides in asked])
        self._ended[trial.number] = {}
        for job in entered:
            self._trials[job.entry.job] = trial.number
            self.study.note_job(trial.number, job.entry.job)
        return entered

    def _job(self, overrides: tuple[str, ...], trial: int) -> PlannedJob:
        try:
            return PlannedJob(overrides, self.plan(overrides), trial)
        except ConfigError as e:
            return PlannedJob(overrides, self.first, trial, problem=str(e))

    def _means(self, ended: dict[int, Outcome]) -> list[float | None]:
        """Mean of each objective over the finished jobs; None for one without a value."""
        entries = self.session.jobs.entered
        rows = [
            read_result(entries[number], self.session.objectives).values
            for number, outcome in ended.items()
            if _state(outcome) == RunState.FINISHED
        ]
        columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
        return [statistics.fmean(column) if column else None for column in columns]


def _is_unfinished(outcome: Outcome) -> bool:
    """Whether the next command resumes the job."""
    return outcome.state in (RunState.KILLED, RunState.NOT_RUN) or bool(outcome.signal)


def _state(outcome: Outcome) -> str:
    return RunState.FINISHED if outcome.state is RunState.SKIPPED else outcome.state
