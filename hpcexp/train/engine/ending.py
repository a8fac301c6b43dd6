"""Ends training after a number of steps or tokens, or a time, at the same step on all ranks and across attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hpcexp.errors import ConfigError
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.steps import steps_done


class Ending(FastCallback):
    """Has training end once a limit is reached: the running epoch ends there, with its validation.

    Lightning's own `max_steps` counts calls of optimizers. This counts steps, so that a module with two optimizers or
    with skipped steps trains as long as any other.
    """

    def __init__(self, *, steps: int | None = None, tokens: int | None = None, seconds: float | None = None) -> None:
        self._steps, self._tokens, self._seconds = steps, tokens, seconds
        self._num_tokens = 0
        """Of all ranks."""
        self._trained_s = 0.0
        """Before this attempt."""
        self._began = monotonic()
        self._group: Any = None
        if tokens is None:
            self.on_train_batch_start = None  # type: ignore[method-assign,assignment]

    @property
    def is_time_over(self) -> bool:
        """Whether this rank has trained as long as it may."""
        return self._seconds is not None and self._elapsed_s >= self._seconds

    @property
    def _elapsed_s(self) -> float:
        return self._trained_s + monotonic() - self._began

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the limit of steps over from Lightning, now that users' schedules have asked it for their length."""
        self._began = monotonic()
        if self._steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = -1
        if self._tokens is not None and trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        self.after_batch(trainer)  # a run may have been killed between its last step and its end

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens of a batch, on all ranks."""
        count = torch.tensor([num_tokens(batch, counter_of(trainer, pl_module))])
        if self._group is not None:
            torch.distributed.all_reduce(count, group=self._group)
        self._num_tokens += int(count.item())

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Have training end where steps or tokens say so, which are the same on all ranks."""
        is_done = self._steps is not None and steps_done(trainer) >= self._steps
        if is_done or (self._tokens is not None and self._num_tokens >= self._tokens):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What has been counted over all attempts."""
        return {"tokens": self._num_tokens, "trained_s": self._elapsed_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self._num_tokens, self._trained_s = state_dict["tokens"], state_dict["trained_s"]


def counter_of(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Any], int] | None:
    """The user's own `num_tokens(batch)`: of the module or of the data module."""
    data = getattr(trainer, "datamodule", None)
    return getattr(module, "num_tokens", None) or getattr(data, "num_tokens", None)


def num_tokens(batch: Any, counter: Callable[[Any], int] | None = None) -> int:
    """Tokens of a batch: as `counter` says; or those of its attention mask; or of its first tensor of token numbers.

    ConfigError where it has none: integers in two or more dimensions.
    """
    if counter is not None:
        return int(counter(batch))
    for name, tensor in _tensors(batch):
        if name == "attention_mask":
            return int(tensor.sum())
    for _, tensor in _tensors(batch):
        if tensor.ndim >= 2 and not tensor.is_floating_point() and tensor.dtype is not torch.bool:
            return tensor.numel()
    raise ConfigError(
        "trainer.max_duration is in tokens, and a batch has no tensor of token numbers (integers in two dimensions).\n"
        "Fix: give the module or the data module a method num_tokens(batch); or trainer.max_duration=…ba."
    )


def _tensors(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, str(key))
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value, name)
