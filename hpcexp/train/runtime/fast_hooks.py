"""What Lightning does at every step for hooks that nobody uses, left out. Together a third of its overhead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

# Lightning passes over a hook that is not callable; one that does nothing costs two attribute writes and a context.
_UNUSED: Any = None


class FastCallback(pl.Callback):
    """A callback whose hooks of a step cost nothing unless a subclass defines them."""

    on_train_batch_start = on_train_batch_end = _UNUSED
    on_before_zero_grad = on_before_backward = on_after_backward = on_before_optimizer_step = _UNUSED
    on_validation_batch_start = on_validation_batch_end = on_test_batch_start = on_test_batch_end = _UNUSED


class FastModule(pl.LightningModule):
    """A module whose hooks of a step cost nothing unless a subclass defines them.

    With `plain_batches`, no data module has hooks to change batches; those that are tuples of tensors move at once.
    """

    plain_batches = False

    on_train_batch_start = on_train_batch_end = _UNUSED
    on_before_zero_grad = on_before_backward = on_after_backward = on_before_optimizer_step = _UNUSED

    def __setattr__(self, name: str, value: Any) -> None:
        """As in torch, but for the name of the running hook, a string, which Lightning sets some fifty times a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

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
