"""Lightning's place for logged values, which here keeps those of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from pytorch_lightning.trainer.states import RunningStage
from torch import Tensor

from hpcexp.train.engine.epoch_values import add_saved
from hpcexp.train.engine.step_recorder import LOSS, StepRecorder
from hpcexp.train.runtime.steps import set_steps_done, steps_done
from hpcexp.train.tasks.loss_log import Value

AfterBatch = Callable[[pl.Trainer], None]


class Recording(_LoggerConnector):
    """Lightning's place for logged values, which keeps those of every step for the journal.

    Lightning's own writes the newest values of every `log_every_n_steps`th step, counted from 0. This one counts a step
    when all hooks of its batches have run, and then calls `after_batch`: from there on nothing of the batch is open.
    """

    def __init__(self, trainer: pl.Trainer, steps: StepRecorder, after_batch: list[AfterBatch]) -> None:
        super().__init__(trainer)
        self._steps, self._after_batch = steps, after_batch
        steps.resume_logged = self._resume
        self._values: dict[str, Value] = {}
        """What the running step has logged for the journal."""
        self._newest: dict[str, Value] = {}
        """What the running step has logged for callbacks."""
        self._interrupted: dict[str, Any] = {}
        """What the running epoch had accumulated before an interruption, until it is logged again."""
        self._agreed: dict[str, Tensor] = {}
        """The values of the newest validation on rank 0, where there are others."""
        self._of_steps: set[str] = set()
        """Names that steps have logged."""
        self._unlogged: set[str] = set()
        """Names that are not for loggers."""
        self._newest_shown: dict[str, Value] = {}
        """What the running step has logged for a progress bar."""

    # What a step logs, by the quick way and by Lightning's

    @property
    def is_in_step(self) -> bool:
        """Whether what is logged now is logged by a training step or its hooks."""
        return self._first_loop_iter is not None and self.trainer.state.stage is RunningStage.TRAINING

    @property
    def step(self) -> int:
        """The running step, from 1, or the last one that is done where none is running."""
        return steps_done(self.trainer) + (1 if self.is_in_step else 0)

    def keep(self, name: str, value: Value, *, is_journalled: bool, prog_bar: bool) -> None:
        """Keep a value of this step alone. A tensor must have no dimensions and no gradient, and be nobody else's."""
        if is_journalled:
            self._values[name] = value
        else:
            self._unlogged.add(name)
        self._newest[name] = value
        if prog_bar:
            self._newest_shown[name] = value

    def _resume(self, logged: dict[str, Any]) -> None:
        """Continue the means of an epoch that was interrupted."""
        self._interrupted = logged

    def keep_result(self, key: str) -> None:
        """Keep what Lightning's results have for this step under a key, if they have anything."""
        results = self.trainer._results
        metric = None if results is None else results.get(key)
        if metric is not None and key in self._interrupted:
            add_saved(metric, self._interrupted.pop(key))
        if metric is None or not (metric.meta.on_step and metric.meta.logger):
            return
        value = metric._forward_cache
        if isinstance(value, Tensor) and value.numel() == 1:
            self._values[metric.meta.forked_name(on_step=True)] = value.detach().reshape(())

    # Steps

    def on_batch_end(self) -> None:
        trainer = self.trainer
        if trainer.state.stage is not RunningStage.TRAINING:
            super().on_batch_end()
            return
        results = trainer._results
        if results:
            super().on_batch_end()
        elif results is not None:
            results.batch = results.batch_size = None
        if not trainer.fit_loop._should_accumulate():
            set_steps_done(trainer, steps_done(trainer) + 1)
            values, self._values = self._values, {}
            self._steps.end(values)
        for act in self._after_batch:
            act(trainer)

    def update_train_epoch_metrics(self) -> None:
        """As Lightning does. What was not logged again after an interruption belongs to no later epoch."""
        self._interrupted = {}
        super().update_train_epoch_metrics()

    def update_train_step_metrics(self) -> None:
        """Nothing: the step is kept already."""

    def log_metrics(self, metrics: dict[str, Tensor], step: int | None = None) -> None:
        """Write values of an epoch, a validation or a test, at the steps done."""
        self._settle()
        if metrics and step is None and "step" not in metrics:
            step = steps_done(self.trainer)
            metrics = {"epoch": torch.tensor(float(self.trainer.current_epoch)), **self._steps.unmixed(metrics)}
        super().log_metrics(metrics, step)

    def log_eval_end_metrics(self, metrics: dict[str, Tensor]) -> None:
        """As Lightning does; under more than one rank all take the values of rank 0 from here on.

        Schedules, best weights and early stopping follow them: ranks that each followed their own value would train
        with different rates, or wait for each other in different collectives.
        """
        super().log_eval_end_metrics(metrics)
        trainer = self.trainer
        if trainer.world_size > 1 and self._steps.fills and not trainer.sanity_checking:
            self._settle()
            of_training = {LOSS, *self._of_steps, *(m.meta.name for m in trainer.fit_loop.epoch_loop._results.values())}
            of_rank_0 = trainer.strategy.broadcast({k: v.tolist() for k, v in super().callback_metrics.items()})
            self._agreed = {k: torch.tensor(v) for k, v in of_rank_0.items() if k not in of_training}

    # The newest values

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        self._settle()
        found = super().callback_metrics
        if self._agreed:
            found.update(self._agreed)
        return found

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        self._settle()
        return super().logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        self._settle()
        return super().progress_bar_metrics

    def on_epoch_end(self) -> None:
        self._settle()
        super().on_epoch_end()

    def update_eval_epoch_metrics(self) -> dict[str, Tensor]:
        self._settle()
        return super().update_eval_epoch_metrics()

    def reset_metrics(self) -> None:
        self._newest, self._newest_shown, self._agreed = {}, {}, {}
        super().reset_metrics()

    def teardown(self) -> None:
        self._settle()
        super().teardown()

    def _settle(self) -> None:
        """Show what steps have logged: only when somebody looks, as every step replaces it."""
        if self._newest:
            tensors = {k: v if isinstance(v, Tensor) else torch.tensor(v) for k, v in self._newest.items()}
            self._callback_metrics.update(tensors)
            self._of_steps |= tensors.keys()
            self._logged_metrics.update({k: v for k, v in tensors.items() if k not in self._unlogged})
            self._newest = {}
        if self._newest_shown:
            shown = {k: float(v) for k, v in self._newest_shown.items()}
            self._progress_bar_metrics.update(shown)
            self._newest_shown = {}
