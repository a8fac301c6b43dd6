"""Evaluation metrics as sums on the device: exact over batches of any size and over ranks, read once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


METRICS: dict[str, Count] = {"acc": accuracy, "top5": top5, "mse": squared_error, "mae": absolute_error}


class MetricAccumulator:
    """Loss and metrics of one pass over an evaluation set."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = ("loss", *names)
        self._counts = [METRICS[name] for name in names]
        self._totals = torch.zeros(len(self.names) + 1, device=device, dtype=_wide(device))

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch; `loss` is its mean."""
        size = targets.shape[0]
        values = [loss.to(self._totals.dtype) * size, *(count(outputs, targets) for count in self._counts)]
        self._totals[:-1] += torch.stack([v.to(self._totals.dtype) for v in values])
        self._totals[-1] += size

    def means(self) -> dict[str, float]:
        """Mean of each over all samples that all ranks have seen. Every rank must call it."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._totals)
        *sums, size = self._totals.tolist()
        return {name: value / size if size else float("nan") for name, value in zip(self.names, sums, strict=True)}


def _widened(values: Tensor) -> Tensor:
    """At least float32: bfloat16 has eight bits, and a sum over a batch would be made of them."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it: a sum over millions of samples stays exact."""
    return torch.float32 if device.type == "mps" else torch.float64
