"""The training losses of steps, and what else is logged in them, on their way from the device to the journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcexp.runs.journal import Journal

Value = Tensor | float
"""A number that may still be on the device, as a tensor of one element."""

_NO_VALUES: Mapping[str, Value] = {}


class LossLog:
    """Keeps losses and values on the device, and reads those of `every` steps at once.

    The losses of other ranks come beside the next step, whose gradients are exchanged anyway: a step that waited for
    them took a third longer, on two CPU ranks. Values are this rank's own.
    """

    def __init__(self, journal: Journal | None, every: int = 50) -> None:
        self.diverged = False
        """Whether a loss was not finite."""
        self.since_validation: list[float] = []
        self._journal, self._every = journal, every
        self._step = self._ended = 0
        """Steps that are in the journal, and those that have ended."""
        self._world_size, self._nothing = 1, torch.zeros(())
        self._weight = 1.0
        self._micro: list[Tensor] = []
        self._kept: list[Tensor | None] = []
        self._rates: list[float | Mapping[str, float]] = []
        self._values: list[Mapping[str, Value]] = []
        self._on_their_way: tuple[Any, list[Tensor], _Window] | None = None
        """The exchange between ranks, what it brings, and what is known of its steps here."""

    def __deepcopy__(self, memo: Any) -> LossLog:
        """Itself: a copy of a module, as callbacks that average weights make, has no steps of its own."""
        return self

    @property
    def num_micro(self) -> int:
        """Batches of the running step so far."""
        return len(self._micro)

    def begin(self, step: int, world_size: int, device: torch.device | None = None) -> None:
        """Training starts or resumes after `step`. `device`: of the losses; needed where a step may have none."""
        self._step = self._ended = step
        self._world_size, self._nothing = world_size, torch.zeros((), device=device)

    def add(self, loss: Tensor) -> None:
        """Keep the loss of one batch, of several in a step where gradients are accumulated."""
        self._micro.append(loss if self._weight == 1.0 else loss * self._weight)

    def weigh(self, weight: float) -> None:
        """What the losses of the batches from here on count in the mean over ranks."""
        self._weight = weight

    def end_step(self, rates: float | Mapping[str, float], values: Mapping[str, Value] = _NO_VALUES) -> None:
        """The step of the batches since the last one is done.

        `rates`: its learning rate, or several by their names. `values`: what else is journalled; `train/loss` among
        them takes precedence over the losses. A step without a loss has none in the journal.
        """
        micro = self._micro
        self._kept.append(torch.stack(micro).mean() if len(micro) > 1 else micro[0] if micro else None)
        self._rates.append(rates)
        self._values.append(values)
        micro.clear()
        self._ended += 1
        self._receive()
        if len(self._kept) >= self._every:
            self._send()

    def add_values(self, values: Mapping[str, Value]) -> None:
        """What else is journalled of the step that has just ended."""
        if self._values:
            self._values[-1] = {**self._values[-1], **values}
        elif self._journal is not None:
            window = _Window([False], [{}], [values])
            self._journal.append(enumerate(window.rows([]), self._ended))

    def last(self) -> float | None:
        """Of the newest step that is not journalled yet; None right after a write."""
        return self._kept[-1].item() if self._kept and self._kept[-1] is not None else None

    def flush(self) -> None:
        """Journal all that is kept. Under DDP every rank must call it at the same step."""
        self._receive()
        self._send()
        self._receive()

    def _send(self) -> None:
        if not self._kept:
            return
        kept, window = self._kept, _Window([k is not None for k in self._kept], self._rates, self._values)
        self._kept, self._rates, self._values = [], [], []
        if self._world_size == 1:
            self._write(_numbers([k.float() for k in kept if k is not None]), window)
            return
        # A number also where a step has no loss, so that all ranks exchange as many.
        mine = torch.stack([self._nothing if k is None else k.float() for k in kept])
        of_ranks = [torch.empty_like(mine) for _ in range(self._world_size)]
        # Not reduced: the order of a sum's terms would depend on where in the tensor a step stands.
        self._on_their_way = (torch.distributed.all_gather(of_ranks, mine, async_op=True), of_ranks, window)

    def _receive(self) -> None:
        if self._on_their_way is None:
            return
        (work, of_ranks, window), self._on_their_way = self._on_their_way, None
        work.wait()
        means = torch.stack(of_ranks).mean(0).tolist()
        self._write([mean for mean, has_loss in zip(means, window.has_loss, strict=True) if has_loss], window)

    def _write(self, losses: list[float], window: _Window) -> None:
        self.since_validation += losses
        self.diverged = self.diverged or not all(map(math.isfinite, losses))
        if self._journal is not None:
            self._journal.append(enumerate(window.rows(losses), self._step + 1))
        self._step += len(window.has_loss)


class _Window:
    """What belongs to the losses of consecutive steps."""

    def __init__(
        self, has_loss: list[bool], rates: list[float | Mapping[str, float]], values: list[Mapping[str, Value]]
    ) -> None:
        self.has_loss, self._rates, self._values = has_loss, rates, values

    def rows(self, losses: list[float]) -> list[dict[str, float]]:
        """The metrics of each step."""
        left = iter(losses)
        rows: list[dict[str, float]] = []
        for has_loss, rates in zip(self.has_loss, self._rates, strict=True):
            row = {"train/loss": next(left)} if has_loss else {}
            row |= rates if isinstance(rates, Mapping) else {"train/lr": float(rates)}
            rows.append(row)
        if any(self._values):
            self._add_values(rows)
        return rows

    def _add_values(self, rows: list[dict[str, float]]) -> None:
        """Read from the device with one transfer."""
        tensors = [v for values in self._values for v in values.values() if isinstance(v, Tensor)]
        read = iter(_numbers(tensors))
        for row, values in zip(rows, self._values, strict=True):
            row.update({k: next(read) if isinstance(v, Tensor) else v for k, v in values.items()})


def _numbers(tensors: Sequence[Tensor]) -> list[float]:
    """Tensors of one element as numbers, with one transfer where all are of one kind."""
    if len(tensors) == 1:
        # A stack of one costs 11 µs more than the number itself, a hundredth of a small step.
        return [tensors[0].item()]
    if len({(t.device, t.dtype) for t in tensors}) > 1:
        return [t.item() for t in tensors]
    return torch.stack(list(tensors)).tolist() if tensors else []
