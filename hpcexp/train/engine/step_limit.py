"""Ends training after a step. The plan, and with it schedules and data order, stays that of the whole run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.steps import steps_done
from hpcexp.train.tasks.loss_log import LossLog


class StepLimitReached(Exception):  # noqa: N818 - the name says what happened
    """The last step is done, with the validation that belongs to it."""


class StepLimit(FastCallback):
    """Ends training on all ranks where the step after `step` would begin: a validation that is due comes before."""

    def __init__(self, step: int, losses: LossLog) -> None:
        self._step, self._losses = step, losses

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Journal the losses, and raise StepLimitReached."""
        if steps_done(trainer) < self._step:
            return
        self._losses.flush()
        raise StepLimitReached
