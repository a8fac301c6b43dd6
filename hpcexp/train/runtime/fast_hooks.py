"""What Lightning does at every step for hooks that nobody uses, left out. Together a third of its overhead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])

# Lightning passes over a hook that is not callable; one that does nothing costs two attribute writes and a context.
_UNUSED: Any = None

_STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class FastCallback(pl.Callback):
    """A callback whose hooks of a step cost nothing unless a subclass defines them."""

    on_train_batch_start = on_train_batch_end = _UNUSED
    on_before_zero_grad = on_before_backward = on_after_backward = on_before_optimizer_step = _UNUSED
    on_validation_batch_start = on_validation_batch_end = on_test_batch_start = on_test_batch_end = _UNUSED


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """As in torch, but for the name of the running hook, a string, which Lightning sets some fifty times a step."""
    if name == "_current_fx_name":
        module.__dict__[name] = value
    else:
        nn.Module.__setattr__(module, name, value)


class FastModule(pl.LightningModule):
    """A module whose hooks of a step cost nothing unless a subclass defines them.

    With `plain_batches`, no data module has hooks to change batches; those that are tuples of tensors move at once.
    """

    plain_batches = False

    on_train_batch_start = on_train_batch_end = _UNUSED
    on_before_zero_grad = on_before_backward = on_after_backward = on_before_optimizer_step = _UNUSED

    __setattr__ = set_attribute

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        return batch if self.plain_batches else super()._on_before_batch_transfer(batch, dataloader_idx)

    def _apply_batch_transfer_handler(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        if (
            not self.plain_batches
            or type(batch) not in (tuple, list)
            or not all(isinstance(part, Tensor) for part in batch)
        ):
            return super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        target = device or self.device
        return batch if batch[0].device == target else tuple(t.to(target, non_blocking=True) for t in batch)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def signed(function: F) -> F:
    """`function` with its signature worked out once: Lightning looks at it at every step."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def quicken(module: pl.LightningModule) -> None:
    """Leave out for a user's module what Lightning does at every step for hooks that it has not overridden."""
    cls = type(module)
    for name in _STEP_HOOKS:
        if getattr(cls, name) is getattr(pl.LightningModule, name) and name not in module.__dict__:
            module.__dict__[name] = _UNUSED
    for name in _STEPS:
        function = getattr(cls, name, None)
        if inspect.isfunction(function) and "__signature__" not in vars(function):
            signed(function)
