"""The Optuna study of a search: it proposes trials and learns from their results.

Importing it imports Optuna; `hpcexp.sweep.spec.search_problems` says before whether that is there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hpcexp.errors import RunError
from hpcexp.redaction import without_password
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.search.retry_queue import RetryQueue
from hpcexp.sweep.search.samplers import Pointer, make_pruner, make_sampler
from hpcexp.sweep.search.storage import close_storage, storage_alone, storage_uri
from hpcexp.sweep.search.study_file import check_study, check_trials
from hpcexp.sweep.search.study_identity import SEED, SPACE, check_space, seed_of
from hpcexp.sweep.search.trial_records import AGAIN, JOB, TrialRecords
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec, searched
from hpcexp.sweep.spec.values import Value, grid_point, grid_size, typed_value
from hpcexp.tracking.mlflow.store import problem_of

JOURNAL = "study.jsonl"
PATIENCE_S = 600.0
"""How long a storage may fail to answer before asking it for a trial is an error."""
_FAILURES = (StorageInternalError, OSError)
_PREFIX = "hpcexp."
_POINT = "hpcexp.point"
"""Attribute of a grid's trial: the number of its point."""
_ABANDONED_S = 60.0
"""A trial that still lacks values after this long was abandoned: its driver died while asking."""


@dataclass(frozen=True)
class Trial:
    """A point that the study asks for."""

    number: int
    """From 0, as Optuna counts."""
    params: Mapping[str, str]
    """Axis → value as it is typed in an override."""
    job: int | None = None
    """Set by `note_job`."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """As they are typed."""
        return tuple(f"{axis}={text}" for axis, text in self.params.items())


@dataclass(frozen=True)
class Counts:
    """Trials of a study."""

    finished: int
    pruned: int
    failed: int
    running: int

    @property
    def total(self) -> int:
        """What counts against `budget.trials`."""
        return self.finished + self.pruned + self.failed + self.running


class Study:
    """A study that several drivers may work on, each of which may die and restart.

    Nothing here waits for a storage that does not answer: results are queued and sent later (`settle`), no trial is
    pruned meanwhile, and `ask` returns None; `problem` says why. Telling a result twice is as telling it once.
    """

    def __init__(
        self, spec: Spec, objectives: tuple[Objective, ...], place: Path, *, project: Path, max_epochs: int | None
    ) -> None:
        """Open the study, or make it. `unfit` has found nothing wrong with what is asked.

        ConfigError where the study is of another space; RunError where its storage cannot be used.
        """
        assert spec.search is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = spec.search.study or spec.name
        self.objectives = objectives
        self._axes, self._limit = searched(spec), _limit(spec)
        uri = storage_uri(spec.search.storage, project)
        self.where = without_password(uri) if uri else str(place / JOURNAL)
        with storage_alone(uri, place / JOURNAL) as self._opened:
            self.optuna = optuna.create_study(
                storage=self._opened,
                study_name=self.name,
                directions=["maximize" if o.mode == "max" else "minimize" for o in objectives],
                pruner=make_pruner(spec.search.pruner, max_epochs),
                load_if_exists=True,
            )
            self._records = TrialRecords(self.optuna, objectives)
            check_study(self.optuna.user_attrs, SPACE, SEED)
            trials = self._records.all()
            check_trials(trials, _PREFIX, len(objectives))
            check_space(self.optuna, self.where, searched(spec), objectives, is_new=not trials)
            seed = seed_of(self.optuna, spec.search.seed)
        self.optuna.sampler = make_sampler(spec.search.sampler, seed, len(objectives), spec.budget.trials)
        self._retry_queue = RetryQueue(lambda: self.optuna.user_attrs, _FAILURES, lambda e: problem_of(e, self.where))
        self._counts = Counts(0, 0, 0, 0)

    @property
    def problem(self) -> str | None:
        """Why the storage does not answer; None if it does."""
        return self._retry_queue.problem

    def counts(self) -> Counts:
        """Trials so far, of all drivers; the last known counts if the storage does not answer."""
        try:
            states = [trial.state for trial in self._records.counted()]
        except _FAILURES as e:
            self._retry_queue.failed(e)
            return self._counts
        of = {state: states.count(state) for state in TrialState}
        running = of[TrialState.RUNNING] + of[TrialState.WAITING]
        self._counts = Counts(of[TrialState.COMPLETE], of[TrialState.PRUNED], of[TrialState.FAIL], running)
        return self._counts

    def is_exhausted(self) -> bool:
        """Whether all trials have been asked for: `budget.trials`, over all continuations, or the points of a grid."""
        return self._limit is not None and self.counts().total >= self._limit

    def ask(self) -> Trial | None:
        """The next trial; None if all have been asked for, or the storage does not answer.

        RunError where it has not answered for long.
        """
        if not self._retry_queue.send():
            if self._retry_queue.silent_s() > PATIENCE_S:
                raise RunError(self._silence())
            return None
        asked: optuna.Trial | None = None
        try:
            if self._limit is not None and len(self._records.counted()) >= self._limit:
                return None
            asked = self.optuna.ask()
            return self._sampled(asked)
        except _FAILURES as e:
            self._retry_queue.failed(e)
            if asked is not None:
                self._retry_queue.put(partial(self._records.drop, asked.number))
            return None
        except UpdateFinishedTrialError:  # another driver has taken it for abandoned
            return None

    def note_job(self, number: int, job: int) -> None:
        """Remember the job of a trial."""
        self._retry_queue.put(partial(self._records.note_job, number, job))

    def report(self, number: int, step: int, value: float) -> bool:
        """Whether the trial ends early, now that its objective is `value` after `step` epochs.

        A resumed run that reports an epoch again gets the same answer.
        """
        verdict: list[bool] = []
        is_sent = self._retry_queue.put(lambda: verdict.append(self._records.is_pruned(number, step, value)))
        return is_sent and verdict[-1]

    def tell(self, number: int, state: RunState, values: Sequence[float | None] = ()) -> None:
        """Store the result of a trial: `finished` with the objectives' values, `failed` or `pruned`.

        A value that is not a number (training diverged) counts as the worst possible: the search must learn to avoid
        that region. A trial that failed or was pruned and finishes at another try is stored as a further trial, which
        does not count.
        """
        self._retry_queue.put(partial(self._records.tell, number, state, tuple(values)))

    def unfinished(self) -> list[Trial]:
        """Trials without a result, of this driver and of others, which may be running them."""
        if not self._retry_queue.send():
            return []
        found = []
        for trial in self._records.counted():
            if trial.state is not TrialState.RUNNING:
                continue
            if set(trial.params) == set(self._axes):
                found.append(self._trial(trial.number, trial.params, trial.user_attrs.get(JOB)))
            elif trial.datetime_start and abs(_age_s(trial.datetime_start)) > _ABANDONED_S:
                self._retry_queue.put(partial(self._records.drop, trial.number))
        return found

    def best(self) -> list[int]:
        """Numbers of the best trials so far: one, or with several objectives the Pareto front."""
        try:
            return [trial.user_attrs.get(AGAIN, trial.number) for trial in self.optuna.best_trials]
        except _FAILURES:
            return []

    def trials(self) -> dict[int, FrozenTrial]:
        """Number → trial of those that count, for plots; a further try replaces the first."""
        again = {
            t.user_attrs[AGAIN]: t
            for t in self._records.all()
            if AGAIN in t.user_attrs and t.state is TrialState.COMPLETE
        }
        return {trial.number: again.get(trial.number, trial) for trial in self._records.counted()}

    def settle(self, wait_s: float) -> str | None:
        """Send what is queued, for at most `wait_s`; why that failed, or None.

        The next driver stores what is lost here: those trials are among its `unfinished`.
        """
        deadline = time.monotonic() + wait_s
        while not self._retry_queue.send():
            if time.monotonic() >= deadline:
                return self.problem
            time.sleep(0.1)
        return None

    def close(self) -> None:
        """Close the storage."""
        close_storage(self._opened)

    def _sampled(self, asked: optuna.Trial) -> Trial | None:
        """The trial with its values; None if other drivers asked for the last ones first."""
        position = sum(trial.number < asked.number for trial in self._records.counted())
        if self._limit is not None and position >= self._limit:
            self._records.drop(asked.number)
            return None
        if isinstance(self.optuna.sampler, Pointer):
            number = self._free_point(asked.number)
            asked.set_user_attr(_POINT, number)
            self.optuna.sampler.point = grid_point(self._axes, number)
        return self._trial(asked.number, {name: _suggested(asked, name, axis) for name, axis in self._axes.items()})

    def _free_point(self, trial: int) -> int:
        """Number of the grid's point for a trial that has none yet; earlier trials take theirs first.

        A point whose trial was dropped is free again, for whichever trial comes next.
        """
        counted = self._records.counted()
        taken = {other.user_attrs.get(_POINT) for other in counted}
        free = [point for point in _shuffled(grid_size(self._axes)) if point not in taken]
        return free[sum(_POINT not in other.user_attrs for other in counted if other.number < trial)]

    def _trial(self, number: int, params: Mapping[str, Any], job: int | None = None) -> Trial:
        return Trial(number, {name: typed_value(params[name]) for name in self._axes}, job)

    def _silence(self) -> str:
        return (
            f"The study's storage has not answered for {self._retry_queue.silent_s() / 60:.0f} min ({self.problem}).\n"
            "The results are in the run directories; the study gets them when the sweep resumes.\n"
            "Fix: repair the storage, then rerun the same command."
        )


def _limit(spec: Spec) -> int | None:
    """The largest number of trials; None: unlimited."""
    assert spec.search is not None
    if spec.search.sampler != "grid":
        return spec.budget.trials
    size = grid_size(searched(spec))
    return size if spec.budget.trials is None else min(size, spec.budget.trials)


def _shuffled(size: int) -> list[int]:
    """Numbers below `size` in a fixed random order, so that part of a grid covers all of it evenly."""
    order = list(range(size))
    random.Random(0).shuffle(order)  # noqa: S311 - no secret
    return order


def _suggested(trial: optuna.Trial, name: str, axis: Axis) -> Value:
    if isinstance(axis, Choices):
        return str(trial.suggest_categorical(name, axis.values))
    if isinstance(axis, Interval) and axis.is_int:
        low, high, step = int(axis.low), int(axis.high), int(axis.step or 1)
        return trial.suggest_int(name, low, high, step=step, log=axis.is_log)
    return trial.suggest_float(name, float(axis.low), float(axis.high), step=axis.step, log=axis.is_log)


def _age_s(started: datetime) -> float:
    return (datetime.now() - started).total_seconds()
