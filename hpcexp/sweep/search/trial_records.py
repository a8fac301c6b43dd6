"""The trials of an Optuna study as several drivers write them: operations may be repeated, and may race."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpcexp.runs.records.status import RunState
from hpcexp.sweep.spec.spec import Objective

JOB, AGAIN = "hpcexp.job", "hpcexp.again"
"""Attributes of a trial: its job; the trial of which it is a further try."""
_PRUNED, _SURPLUS = "hpcexp.pruned", "hpcexp.surplus"
"""Attributes of a trial: the step at which it ends early; that it was asked for in vain."""
_STATES = {RunState.FINISHED: TrialState.COMPLETE, RunState.FAILED: TrialState.FAIL, RunState.PRUNED: TrialState.PRUNED}


class TrialRecords:
    """Reads and writes trials. Raises what the storage raises."""

    def __init__(self, study: optuna.Study, objectives: Sequence[Objective]) -> None:
        self.study, self.objectives = study, objectives
        self._storage = study._storage  # with a cache, where it is a database

    def note_job(self, number: int, job: int) -> None:
        """Remember the job of a trial."""
        with suppress(UpdateFinishedTrialError):  # another driver has run it since
            self._storage.set_trial_user_attr(self._id(number), JOB, job)

    def is_pruned(self, number: int, step: int, value: float) -> bool:
        """Record a value after `step` epochs; whether the trial ends there. The same report gets the same answer."""
        trial = self._storage.get_trial(self._id(number))
        if trial.state.is_finished():
            return trial.state is TrialState.PRUNED
        if (pruned_at := trial.user_attrs.get(_PRUNED)) is not None:
            return step >= int(pruned_at)
        try:
            if step not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
                trial.intermediate_values[step] = value
            is_pruned = bool(self.study.pruner.prune(self.study, trial))  # some give NumPy's
            if is_pruned:
                self._storage.set_trial_user_attr(trial._trial_id, _PRUNED, step)
        except UpdateFinishedTrialError:  # another driver has ended it since
            return self._storage.get_trial(trial._trial_id).state is TrialState.PRUNED
        return is_pruned

    def tell(self, number: int, state: RunState, values: tuple[float | None, ...]) -> None:
        """End a trial; one that ended as failed or pruned before and finishes now gets a further trial."""
        finite = [_worst_if_none(v, o) for v, o in zip(values, self.objectives, strict=True)] if values else None
        trial = self._end(number, _STATES[state], finite)
        if state is RunState.FINISHED and trial.state is not TrialState.COMPLETE:
            self._add_again(trial, finite)

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> FrozenTrial:
        """The trial as it has ended: like this, or as the first driver to end it did.

        Looking before would decide nothing: several drivers may end it at one moment.
        """
        with suppress(UpdateFinishedTrialError):
            self.study.tell(number, values, state, skip_if_finished=True)
        return self._storage.get_trial(self._id(number))

    def _add_again(self, trial: FrozenTrial, values: list[float] | None) -> None:
        """Store the values in a further trial, as Optuna's finished trials cannot be changed.

        Drivers that do so at the same moment may each add one. A further trial starts without values, and the first
        gets them: trials are numbered in an order that all drivers see.
        """
        if not self._again(trial):
            attributes = {AGAIN: trial.number, JOB: trial.user_attrs.get(JOB)}
            another = create_trial(
                state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions, user_attrs=attributes
            )
            self.study.add_trial(another)
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
        found = [other for other in self.all() if other.user_attrs.get(AGAIN) == trial.number]
        return sorted(found, key=lambda again: again.number)

    def drop(self, number: int) -> None:
        """Stop counting a trial that nobody will run."""
        if not self._storage.get_trial(self._id(number)).state.is_finished():
            with suppress(UpdateFinishedTrialError):  # another driver has done so since
                self._storage.set_trial_user_attr(self._id(number), _SURPLUS, True)
            self._end(number, TrialState.FAIL)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def all(self) -> list[FrozenTrial]:
        """Every trial of the study, as Optuna has it."""
        return self.study.get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """Trials that count: neither dropped nor a further try of another."""
        return [t for t in self.all() if not (t.user_attrs.get(_SURPLUS) or AGAIN in t.user_attrs)]


def _worst_if_none(value: float | None, objective: Objective) -> float:
    if value is None or math.isnan(value):
        return -math.inf if objective.mode == "max" else math.inf
    return value
