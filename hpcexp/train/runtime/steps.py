"""The axis of everything that is recorded: training steps."""

from __future__ import annotations

import pytorch_lightning as pl

_STEPS = "hpcexp_steps_done"


def steps_done(trainer: pl.Trainer) -> int:
    """Steps whose batch, or whose accumulated batches, have been trained on since the run began.

    Lightning's `global_step` counts calls of optimizers: two a batch for a module with two optimizers, none for a batch
    that `training_step` skips. For one optimizer that is always stepped both are the same.
    """
    return int(trainer.__dict__.get(_STEPS, 0))


def set_steps_done(trainer: pl.Trainer, steps: int) -> None:
    """Count on from there."""
    trainer.__dict__[_STEPS] = steps
