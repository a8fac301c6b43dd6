"""The metric that decides which weights are best: whether it exists, and its newest value."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from hpcexp.errors import ConfigError, suggest


def check_monitor(monitor: str, known: list[str], *, what: str = "trainer.monitor") -> None:
    """ConfigError where a metric that is to be monitored is none of those that a validation gives."""
    if monitor in known:
        return
    near = suggest(monitor, known)
    raise ConfigError(
        f"{what}={monitor} is no metric of this task{f'; {near}' if near else ''}.\n"
        f"A validation gives: {', '.join(known)}.\nFix: {what}={known[-1]}, or add the metric to task.metrics."
    )


def monitored(trainer: pl.Trainer, monitor: str, *, what: str = "trainer.monitor") -> Tensor:
    """The metric's newest value, not a number where it is no single one; ConfigError where it was not logged."""
    value = trainer.callback_metrics.get(monitor)
    if value is None:
        logged = sorted(trainer.callback_metrics)
        near = suggest(monitor, logged)
        raise ConfigError(
            f"{what}={monitor} was not logged by the first validation{f'; {near}' if near else ''}.\n"
            f"{type(trainer.lightning_module).__name__} has logged: {', '.join(logged) or 'nothing'}.\n"
            f"Fix: {what}={logged[-1] if logged else 'NAME'}, or self.log('{monitor}', …) in validation_step."
        )
    return value if isinstance(value, Tensor) else torch.tensor(float("nan"))


def agreed(trainer: pl.Trainer, monitor: str) -> float:
    """The metric's newest value on rank 0, which all ranks follow: what they do about it may be collective."""
    value = float(monitored(trainer, monitor)) if trainer.is_global_zero else float("nan")
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value
