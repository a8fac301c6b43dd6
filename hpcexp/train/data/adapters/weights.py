"""Gradients of batches that are not of one size on all ranks, weighted so that their mean is that over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from hpcexp.train.runtime.fast_hooks import FastCallback


class BatchWeights(FastCallback):
    """Multiplies the gradient of a loss by `size × ranks ÷ size over all ranks`, in an epoch's last, uneven batch.

    DDP takes the mean over ranks. It and this suppose that a loss is a mean over samples.
    """

    def __init__(self, weigh: Callable[[float], None]) -> None:
        """`weigh` gets the weight of each batch before its loss is recorded."""
        self._weigh = weigh

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Let the recorded loss be the same mean."""
        self._weigh(batch_weight(trainer))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Weight the gradient, and leave the loss as it is."""
        weight = batch_weight(trainer)
        if weight != 1.0 and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * weight)  # type: ignore[no-untyped-call]


def batch_weight(trainer: pl.Trainer) -> float:
    """Of this rank's running batch in the mean over ranks; 1 where all are of one size, or of several loaders."""
    loaders: Any = trainer.fit_loop._combined_loader
    if loaders is None or len(loaders.flattened) != 1:
        return 1.0
    weights: dict[int, float] = getattr(loaders.flattened[0], "weights", {})
    return weights.get(trainer.fit_loop.epoch_loop.batch_idx, 1.0) if weights else 1.0
