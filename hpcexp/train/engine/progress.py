"""Progress events for the supervisor, on a pipe that never makes training wait."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import pytorch_lightning as pl

from hpcexp import rank_protocol
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.steps import steps_done
from hpcexp.train.tasks.loss_log import LossLog

INTERVAL_S = 0.25
BEAT_S = 2.0


class ProgressReporter(FastCallback):
    """At most four events a second; of ranks other than 0 a sign of life every two seconds."""

    def __init__(self, fd: int, epochs: int, steps: int | None, losses: LossLog, *, rank: int = 0) -> None:
        self._fd, self._epochs, self._steps, self._losses, self._rank = fd, epochs, steps, losses, rank
        self._next = 0.0
        self._epoch = 1
        os.set_blocking(fd, False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch: one that resumes in its middle has no start of its own."""
        self._epoch = trainer.current_epoch + 1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch: Lightning counts one more when training ends."""
        self._epoch = trainer.current_epoch + 1

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Report the step."""
        if time.monotonic() >= self._next:
            self._report(trainer, "train", loss=None if self._rank else self._losses.last())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the metrics."""
        if time.monotonic() >= self._next:
            self._report(trainer, "validate")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the end, whenever the last report was."""
        self._report(trainer, "train")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """A sign of life."""
        if time.monotonic() >= self._next:
            self._report(trainer, "validate")

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """A sign of life."""
        if time.monotonic() >= self._next:
            self._report(trainer, "test")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report that the test begins."""
        self._report(trainer, "test")

    def _report(self, trainer: pl.Trainer, phase: str, loss: float | None = None) -> None:
        if self._rank:
            self._next = time.monotonic() + BEAT_S
            rank_protocol.send(self._fd, rank_protocol.Progress(self._rank, steps_done(trainer)))
            return
        self._next = time.monotonic() + INTERVAL_S
        event = rank_protocol.Progress(
            rank=0,
            step=steps_done(trainer),
            steps=self._steps,
            phase=phase,
            epoch=min(self._epoch, self._epochs) if self._epochs else self._epoch,
            epochs=self._epochs,
            loss=_finite(loss),
            metrics={k: _finite(float(v)) for k, v in trainer.callback_metrics.items()},
        )
        rank_protocol.send(self._fd, event)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
