"""Optimizer and schedule of a run, as `configure_optimizers` returns them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hpcexp.errors import ConfigError
from hpcexp.plan import Steps
from hpcexp.schema.keys import Trainer
from hpcexp.schema.settings import SchedulerSettings, Settings
from hpcexp.targets.instantiate import fill, instantiate, parameters, resolve
from hpcexp.targets.schedules import length_unknown
from hpcexp.train.optim.parameter_groups import without_decay


def optimizers_of(module: pl.LightningModule, settings: Settings, steps: Steps | None) -> dict[str, Any]:
    """The optimizer over the parameters that are trained, and the schedule where there is one.

    `steps` None: as many as Lightning makes them once it has the loaders.
    """
    trained = without_decay(module, settings.optimizer.no_decay)
    optimizer = instantiate(_unfused(settings), trained, path="optimizer")
    schedule = settings.scheduler
    if not schedule.has_target:
        return {"optimizer": optimizer}
    total, epochs = (steps.total, steps.epochs) if steps else _estimated(module.trainer)
    length = total if schedule.interval == "step" else epochs
    node = _with_length(schedule, length, settings.trainer)
    scheduler = instantiate(node, optimizer, path="scheduler")
    entry: dict[str, Any] = {"scheduler": scheduler, "interval": schedule.interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        if schedule.given.get("interval") == "step":
            raise ConfigError(
                f"scheduler.interval=step: {schedule.target} looks at trainer.monitor, which only a validation gives.\n"
                "Fix: scheduler.interval=epoch"
            )
        if settings.trainer.val_every_steps is not None:
            raise ConfigError(
                f"scheduler={schedule.target} looks at a validation at the end of epochs, which "
                "trainer.val_every_steps does not give.\nFix: trainer.val_every_epochs, or another scheduler."
            )
        entry |= {"monitor": settings.trainer.monitor, "interval": "epoch", "reduce_on_plateau": True}
        entry |= {"frequency": settings.trainer.val_every_epochs}
    return {"optimizer": optimizer, "lr_scheduler": entry}


def clip_gradients(
    module: pl.LightningModule,
    optimizer: Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """As Lightning does, which refuses fused optimizers under mixed precision even where nothing scales gradients."""
    precision = module.trainer.precision_plugin
    if not isinstance(precision, MixedPrecision) or precision.scaler is not None:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
    elif gradient_clip_val and gradient_clip_algorithm == "value":
        torch.nn.utils.clip_grad_value_(precision.main_params(optimizer), gradient_clip_val)
    elif gradient_clip_val:
        torch.nn.utils.clip_grad_norm_(precision.main_params(optimizer), gradient_clip_val)


def _unfused(settings: Settings) -> Mapping[str, Any]:
    """The optimizer's node: a fused kernel takes the scale off the gradients itself, after they would be clipped."""
    node, trainer = settings.optimizer.node, settings.trainer
    scaled = trainer.precision == "16-mixed" and trainer.gradient_clip_val is not None
    return {**node, "fused": False} if scaled and node.get("fused") else node


def _with_length(schedule: SchedulerSettings, length: int | None, trainer: Trainer) -> dict[str, Any]:
    """The schedule's node with its length; ConfigError where that is needed and unknown."""
    known: dict[str, Any] = {"mode": trainer.mode} | ({} if length is None else {"total_steps": length})
    node = fill(schedule.node, "scheduler", **known)
    taken = parameters(resolve(schedule.target, "scheduler")).get("total_steps")
    if taken is not None and "total_steps" not in node and (taken.default is taken.empty or node.get("warmup")):
        raise ConfigError(length_unknown(schedule.target, trainer.max_duration))
    return node


def _estimated(trainer: pl.Trainer) -> tuple[int | None, int | None]:
    """Steps and epochs that Lightning is going to make; None where it cannot know."""
    total, batches = float(trainer.estimated_stepping_batches), float(trainer.num_training_batches)
    steps = int(total) if 0 < total < math.inf else None
    if math.isinf(batches):
        return steps, trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None
    return steps, steps and math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))
