"""hpcexp's own metrics as sums over the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Count = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of a batch → the metric summed over its samples, a scalar tensor."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Samples whose highest output is their class. `outputs` (B, classes), `targets` (B,) int64."""
    return (outputs.argmax(-1) == targets).sum()


def top5(outputs: Tensor, targets: Tensor) -> Tensor:
    """Samples whose class is among the five highest outputs."""
    best = outputs.topk(min(5, outputs.shape[-1]), dim=-1).indices
    return (best == targets.unsqueeze(-1)).sum()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, averaged over the values of a sample and summed over samples."""
    errors = (_widened(outputs) - _widened(targets)).square()
    return errors.flatten(1).mean(1).sum() if errors.ndim > 1 else errors.sum()


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error, averaged over the values of a sample and summed over samples."""
    errors = (_widened(outputs) - _widened(targets)).abs()
    return errors.flatten(1).mean(1).sum() if errors.ndim > 1 else errors.sum()


COUNTS: dict[str, Count] = {"acc": accuracy, "top5": top5, "mse": squared_error, "mae": absolute_error}


def _widened(values: Tensor) -> Tensor:
    """At least float32: bfloat16 has eight bits, and a sum over a batch would be made of them."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
