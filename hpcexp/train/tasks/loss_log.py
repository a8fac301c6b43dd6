"""The training losses of steps, on their way from the device to the journal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hpcexp.runs.journal import Journal


class LossLog:
    """Keeps losses on the device, and reads those of `every` steps at once.

    The losses of other ranks come beside the next step, whose gradients are exchanged anyway: a step that waited for
    them took a third longer, on two CPU ranks.
    """

    def __init__(self, journal: Journal | None, every: int = 50) -> None:
        self.diverged = False
        """Whether one was not finite."""
        self.since_validation: list[float] = []
        self._journal, self._every = journal, every
        self._step, self._world_size = 0, 1
        self._micro: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._rates: list[float] = []
        self._on_their_way: tuple[Any, list[Tensor], list[float]] | None = None
        """The exchange between ranks, what it brings, and the steps' learning rates."""

    @property
    def num_micro(self) -> int:
        """Batches of the running step so far."""
        return len(self._micro)

    def begin(self, step: int, world_size: int) -> None:
        """Training starts or resumes after `step`."""
        self._step, self._world_size = step, world_size

    def add(self, loss: Tensor) -> None:
        """Keep the loss of one batch, of several in a step where gradients are accumulated."""
        self._micro.append(loss)

    def end_step(self, rate: float) -> None:
        """The step of the batches since the last one is done, at a learning rate."""
        self._kept.append(self._micro[0] if len(self._micro) == 1 else torch.stack(self._micro).mean())
        self._rates.append(rate)
        self._micro.clear()
        self._receive()
        if len(self._kept) >= self._every:
            self._send()

    def last(self) -> float | None:
        """Of the newest step that is not journalled yet; None right after a write."""
        return self._kept[-1].item() if self._kept else None

    def flush(self) -> None:
        """Journal all that is kept. Under DDP every rank must call it at the same step."""
        self._receive()
        self._send()
        self._receive()

    def _send(self) -> None:
        if not self._kept:
            return
        kept, rates = self._kept, self._rates
        self._kept, self._rates = [], []
        if self._world_size == 1:
            # A stack of one costs 11 µs more than the number itself, a hundredth of a small step.
            self._write([kept[0].float().item()] if len(kept) == 1 else torch.stack(kept).float().tolist(), rates)
            return
        mine = torch.stack(kept).float()
        of_ranks = [torch.empty_like(mine) for _ in range(self._world_size)]
        # Not reduced: the order of a sum's terms would depend on where in the tensor a step stands.
        self._on_their_way = (torch.distributed.all_gather(of_ranks, mine, async_op=True), of_ranks, rates)

    def _receive(self) -> None:
        if self._on_their_way is None:
            return
        (work, of_ranks, rates), self._on_their_way = self._on_their_way, None
        work.wait()
        self._write(torch.stack(of_ranks).mean(0).tolist(), rates)

    def _write(self, losses: list[float], rates: list[float]) -> None:
        self.since_validation += losses
        self.diverged = self.diverged or not all(map(math.isfinite, losses))
        if self._journal is not None:
            rows = zip(losses, rates, strict=True)
            self._journal.append(
                (self._step + i, {"train/loss": loss, "train/lr": float(lr)}) for i, (loss, lr) in enumerate(rows, 1)
            )
        self._step += len(losses)
