"""The moving average of weights, which is what is evaluated and kept."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.weights import placed_as


class Ema(FastCallback):
    """After every optimizer step: average ← decay × average + (1 − decay) × weights, over floating-point parameters.

    During validation the model holds the average. Buffers (as of batch norm) are the model's own.
    The decay rises with the steps as (1 + t) / (10 + t) until it reaches `decay`, so that short runs have a use of it
    (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: list[Tensor] = []
        self._restored: list[Tensor] = []
        self._step = 0
        self._swapped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the weights as they are, or from a checkpoint's average."""
        live = _parameters(pl_module)
        self._average = [torch.empty_like(p).copy_(p) for p in live]
        for mine, saved in zip(self._average, self._restored, strict=False):
            mine.copy_(placed_as(saved, mine))
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Move the average towards the weights."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, _parameters(pl_module), 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model."""
        if self._average and not self._swapped:
            self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights back."""
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the model as training had it."""
        if self._swapped:
            self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average, in the order of the parameters."""
        return {"average": list(self._average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint's average."""
        self._restored = state_dict["average"]

    def _swap(self, module: pl.LightningModule) -> None:
        """In place: where weights are sharded, others look at the same memory."""
        with torch.no_grad():
            for parameter, average in zip(_parameters(module), self._average, strict=True):
                held = parameter.clone()
                parameter.copy_(average)
                average.copy_(held)
        self._swapped = not self._swapped


def _parameters(module: pl.LightningModule) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad and p.is_floating_point()]
