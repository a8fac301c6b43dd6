"""The Optuna study of a search: asked for trials, told what came of them. The only module of hpcexp that knows trials.

Importing it imports Optuna; `hpcexp.sweep.spec.search_problems` says before whether that is there.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpcexp.errors import ConfigError, RunError
from hpcexp.redaction import without_password
from hpcexp.runs.records import RunState
from hpcexp.sweep.search.retry_queue import RetryQueue
from hpcexp.sweep.search.samplers import Pointer, make_pruner, make_sampler
from hpcexp.sweep.search.space import changed, record
from hpcexp.sweep.search.storage import close_storage, storage_alone, storage_uri
from hpcexp.sweep.search.study_file import check_study, check_trials
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec
from hpcexp.sweep.spec.values import Value, grid_point, grid_size, typed_value
from hpcexp.tracking.mlflow.store import problem_of

JOURNAL = "study.jsonl"
PATIENCE_S = 600.0
"""So long may a storage not answer before asking it for a trial is an error."""
_FAILURES = (StorageInternalError, OSError)
_STATES = {RunState.FINISHED: TrialState.COMPLETE, RunState.FAILED: TrialState.FAIL, RunState.PRUNED: TrialState.PRUNED}
_PREFIX = "hpcexp."
_SPACE, _SEED = "hpcexp.space", "hpcexp.seed"
_JOB, _PRUNED, _SURPLUS, _AGAIN = "hpcexp.job", "hpcexp.pruned", "hpcexp.surplus", "hpcexp.again"
"""Attributes of a trial: its job; the step at which it was to end; asked for in vain; of which it is another try."""
_POINT = "hpcexp.point"
"""Attribute of a grid's trial: the number of its point."""
_ABANDONED_S = 60.0
"""A trial that after so long lacks values is one whose driver has died over it."""


@dataclass(frozen=True)
class Trial:
    """A point that the study wants to know about."""

    number: int
    """From 0, as Optuna counts."""
    params: Mapping[str, str]
    """Axis → value as it is typed in an override."""
    job: int | None = None
    """What `note_job` has noted."""

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
    """A study that several drivers may work on, each of which may die and come again.

    Nothing here waits for a storage that does not answer: what it is told is kept and sent later (`settle`), judgements
    are "go on" meanwhile, and `ask` has no trial; `problem` says why. Telling twice is as telling once.
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
        self._axes, self._limit = spec.axes, _limit(spec)
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
            self._storage = self.optuna._storage  # with a cache, where it is a database
            check_study(self.optuna.user_attrs, _SPACE, _SEED)
            check_trials(self._trials(), _PREFIX, len(objectives))
            self._check_is_of(spec.axes, objectives)
            seed = self._seed(spec.search.seed)
        self.optuna.sampler = make_sampler(spec.search.sampler, seed, len(objectives), spec.budget.trials)
        self._retry_queue = RetryQueue(lambda: self.optuna.user_attrs, _FAILURES, lambda e: problem_of(e, self.where))
        self._counts = Counts(0, 0, 0, 0)

    @property
    def problem(self) -> str | None:
        """Why the storage does not answer; None where it does."""
        return self._retry_queue.problem

    def counts(self) -> Counts:
        """Trials so far, of all drivers; those of before where the storage does not answer."""
        try:
            states = [trial.state for trial in self._counted()]
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
        """The next trial; None where all have been asked for, or where the storage does not answer.

        RunError where it has not answered for long.
        """
        if not self._retry_queue.send():
            if self._retry_queue.silent_s() > PATIENCE_S:
                raise RunError(self._silence())
            return None
        asked: optuna.Trial | None = None
        try:
            if self._limit is not None and len(self._counted()) >= self._limit:
                return None
            asked = self.optuna.ask()
            return self._sampled(asked)
        except _FAILURES as e:
            self._retry_queue.failed(e)
            if asked is not None:
                self._retry_queue.put(partial(self._drop, asked.number))
            return None
        except UpdateFinishedTrialError:  # another driver has taken it for abandoned
            return None

    def note_job(self, number: int, job: int) -> None:
        """Remember the job of a trial."""
        self._retry_queue.put(partial(self._note_job, number, job))

    def report(self, number: int, step: int, value: float) -> bool:
        """Whether the trial is to end, now that its objective is `value` after `step` epochs.

        What a continued run reports again is judged as the first time.
        """
        verdict: list[bool] = []
        is_sent = self._retry_queue.put(lambda: verdict.append(self._is_pruned(number, step, value)))
        return is_sent and verdict[-1]

    def tell(self, number: int, state: RunState, values: Sequence[float | None] = ()) -> None:
        """What came of a trial: `finished` with the objectives' values, `failed` or `pruned`.

        A value that is no number, as where training has diverged, counts as the worst there is: a search must learn to
        stay away from there. A trial that had failed or was pruned, and has finished at another try, is told as one
        more, which does not count.
        """
        self._retry_queue.put(partial(self._tell, number, state, tuple(values)))

    def unfinished(self) -> list[Trial]:
        """Trials that were asked for and never told, of this driver and of others, who may be at work on them."""
        if not self._retry_queue.send():
            return []
        found = []
        for trial in self._counted():
            if trial.state is not TrialState.RUNNING:
                continue
            if set(trial.params) == set(self._axes):
                found.append(self._trial(trial.number, trial.params, trial.user_attrs.get(_JOB)))
            elif trial.datetime_start and abs(_age_s(trial.datetime_start)) > _ABANDONED_S:
                self._retry_queue.put(partial(self._drop, trial.number))
        return found

    def best(self) -> list[int]:
        """Numbers of the best trials so far: one, or with several objectives all that no other beats in all of them."""
        try:
            return [trial.user_attrs.get(_AGAIN, trial.number) for trial in self.optuna.best_trials]
        except _FAILURES:
            return []

    def trials(self) -> dict[int, FrozenTrial]:
        """Number → trial, of those that count, for looking at; second tries in the place of the first."""
        again = {
            t.user_attrs[_AGAIN]: t for t in self._trials() if _AGAIN in t.user_attrs and t.state is TrialState.COMPLETE
        }
        return {trial.number: again.get(trial.number, trial) for trial in self._counted()}

    def settle(self, wait_s: float) -> str | None:
        """Send what waits, for so long at most; why that did not succeed, or None.

        What is lost then is told by the driver that goes on: its trials are among the `unfinished`.
        """
        deadline = time.monotonic() + wait_s
        while not self._retry_queue.send():
            if time.monotonic() >= deadline:
                return self.problem
            time.sleep(0.1)
        return None

    def close(self) -> None:
        """Let go of the storage."""
        close_storage(self._opened)

    def _sampled(self, asked: optuna.Trial) -> Trial | None:
        """The trial with its values; None where other drivers have been faster to ask for the last ones."""
        position = sum(trial.number < asked.number for trial in self._counted())
        if self._limit is not None and position >= self._limit:
            self._drop(asked.number)
            return None
        if isinstance(self.optuna.sampler, Pointer):
            number = self._free_point(asked.number)
            asked.set_user_attr(_POINT, number)
            self.optuna.sampler.point = grid_point(self._axes, number)
        return self._trial(asked.number, {name: _suggested(asked, name, axis) for name, axis in self._axes.items()})

    def _free_point(self, trial: int) -> int:
        """Number of the grid's point for a trial that has none yet: those asked for before it take theirs first.

        A point whose trial was dropped is free again, for whichever trial comes next.
        """
        counted = self._counted()
        taken = {other.user_attrs.get(_POINT) for other in counted}
        free = [point for point in _shuffled(grid_size(self._axes)) if point not in taken]
        return free[sum(_POINT not in other.user_attrs for other in counted if other.number < trial)]

    def _trial(self, number: int, params: Mapping[str, Any], job: int | None = None) -> Trial:
        return Trial(number, {name: typed_value(params[name]) for name in self._axes}, job)

    def _note_job(self, number: int, job: int) -> None:
        with suppress(UpdateFinishedTrialError):  # another driver has run it since
            self._storage.set_trial_user_attr(self._id(number), _JOB, job)

    def _is_pruned(self, number: int, step: int, value: float) -> bool:
        trial = self._storage.get_trial(self._id(number))
        if trial.state.is_finished():
            return trial.state is TrialState.PRUNED
        if (pruned_at := trial.user_attrs.get(_PRUNED)) is not None:
            return step >= int(pruned_at)
        try:
            if step not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
                trial.intermediate_values[step] = value
            is_pruned = bool(self.optuna.pruner.prune(self.optuna, trial))  # some give NumPy's
            if is_pruned:
                self._storage.set_trial_user_attr(trial._trial_id, _PRUNED, step)
        except UpdateFinishedTrialError:  # another driver has ended it since
            return self._storage.get_trial(trial._trial_id).state is TrialState.PRUNED
        return is_pruned

    def _tell(self, number: int, state: RunState, values: tuple[float | None, ...]) -> None:
        finite = [_worst_if_none(v, o) for v, o in zip(values, self.objectives, strict=True)] if values else None
        trial = self._end(number, _STATES[state], finite)
        if state is RunState.FINISHED and trial.state is not TrialState.COMPLETE:
            self._add_again(trial, finite)

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> FrozenTrial:
        """The trial as it has ended: like this, or as whoever was first has told.

        Looking before would decide nothing: several drivers may end it at one moment.
        """
        with suppress(UpdateFinishedTrialError):
            self.optuna.tell(number, values, state, skip_if_finished=True)
        return self._storage.get_trial(self._id(number))

    def _add_again(self, trial: FrozenTrial, values: list[float] | None) -> None:
        """Have the values in one more trial, as Optuna's finished ones cannot be changed.

        Drivers that do so at one moment may each make one. It begins without values, and the first of them gets these:
        trials are numbered in the order that all drivers see.
        """
        if not self._again(trial):
            attributes = {_AGAIN: trial.number, _JOB: trial.user_attrs.get(_JOB)}
            another = create_trial(
                state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions, user_attrs=attributes
            )
            self.optuna.add_trial(another)
        first, *others = self._again(trial)
        for again, state, finite in [
            (first, TrialState.COMPLETE, values),
            *((o, TrialState.FAIL, None) for o in others),
        ]:
            with suppress(UpdateFinishedTrialError):
                if not again.state.is_finished():
                    self._storage.set_trial_state_values(again._trial_id, state, finite)

    def _again(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Further tries of a trial, in their order."""
        found = [other for other in self._trials() if other.user_attrs.get(_AGAIN) == trial.number]
        return sorted(found, key=lambda again: again.number)

    def _drop(self, number: int) -> None:
        """Count a trial no longer that nobody will run."""
        if not self._storage.get_trial(self._id(number)).state.is_finished():
            with suppress(UpdateFinishedTrialError):  # another driver has done so since
                self._storage.set_trial_user_attr(self._id(number), _SURPLUS, True)
            self._end(number, TrialState.FAIL)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number)

    def _trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def _counted(self) -> list[FrozenTrial]:
        return [t for t in self._trials() if not (t.user_attrs.get(_SURPLUS) or _AGAIN in t.user_attrs)]

    def _seed(self, asked: int | None) -> int:
        """The asked one, else that of before, else one of the study's own."""
        before = self.optuna.user_attrs.get(_SEED)
        seed = asked if asked is not None else before if before is not None else _seed_of(self.name)
        if seed != before:
            self.optuna.set_user_attr(_SEED, seed)
        return seed

    def _check_is_of(self, axes: Mapping[str, Axis], objectives: Sequence[Objective]) -> None:
        """Have what the study is about noted in it, so that trials of another space do not get among its own."""
        asked = record(axes, objectives)
        if _SPACE not in self.optuna.user_attrs and not self._trials():
            self.optuna.set_user_attr(_SPACE, asked)
        before = self.optuna.user_attrs.get(_SPACE)
        if before is None:
            raise ConfigError(f"The study {self.name} in {self.where} is none of hpcexp's.\n{_ANOTHER_NAME}")
        if changes := changed(before, asked):
            finite = "\n".join(f"  {change}" for change in changes)
            raise ConfigError(
                f"The study {self.name} in {self.where} was begun with another space:\n{finite}\n"
                f"What it has learned does not hold for this one.\n{_ANOTHER_NAME}"
            )

    def _silence(self) -> str:
        return (
            f"The study's storage has not answered for {self._retry_queue.silent_s() / 60:.0f} min ({self.problem}).\n"
            "The results are in the run directories, and the study is told them when the sweep goes on.\n"
            "Fix: see to the storage, then give the same command again."
        )


_ANOTHER_NAME = "Fix: ask for what it was begun with, or give the sweep or its study (search.study) another name."


def _limit(spec: Spec) -> int | None:
    """How many trials there are at most."""
    assert spec.search is not None
    if spec.search.sampler != "grid":
        return spec.budget.trials
    size = grid_size(spec.axes)
    return size if spec.budget.trials is None else min(size, spec.budget.trials)


def _shuffled(size: int) -> list[int]:
    """Numbers below `size` in an order that is always the same: a part of a grid is then spread over the whole."""
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


def _worst_if_none(value: float | None, objective: Objective) -> float:
    if value is None or math.isnan(value):
        return -math.inf if objective.mode == "max" else math.inf
    return value


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _age_s(started: datetime) -> float:
    return (datetime.now() - started).total_seconds()
