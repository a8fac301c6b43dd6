"""Batches of a data set: sharded over ranks, shuffled by seed and epoch alone, resumable in mid-epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpcexp.train.runtime.seeds import seed_everything


@dataclass(frozen=True)
class Shard:
    """Which part of a data set a rank sees."""

    rank: int = 0
    world_size: int = 1


class DistributedBatchSampler:
    """Indices of this rank's batches, epoch by epoch.

    Training (`shuffle`): the permutation comes from seed and epoch, is the same on every rank, and is cut into global
    batches of `batch_size × accumulate × world_size`, of which each rank takes its contiguous share; the incomplete
    last one is dropped. The same samples are thus in the same optimizer step whatever the number of ranks.
    Evaluation: every sample once, in order, split evenly over ranks without padding.

    It starts at the position that `load_state_dict` set, once; otherwise at the beginning, at the start of iteration.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        shard: Shard | None = None,
        accumulate: int = 1,
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.shard, self.accumulate = shard or Shard(), accumulate
        self.epoch = 0
        self.position = 0
        self.resume_at = 0
        """Batch at which the next iteration begins."""

    @property
    def sampler(self) -> DistributedBatchSampler:
        """Itself: where Lightning looks in a batch sampler for `set_epoch`."""
        return self

    def __len__(self) -> int:
        if self.shuffle:
            return self.size // (self.batch_size * self.accumulate * self.shard.world_size) * self.accumulate
        return len(self._own_batches())

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            yield batch.tolist()

    def batches(self) -> Iterator[Tensor]:
        """Index tensors (int64, on the CPU) of this epoch's remaining batches."""
        self.position, self.resume_at = self.resume_at, 0
        if not self.shuffle:
            for own in self._own_batches()[self.position :]:
                self.position += 1
                yield torch.arange(own.start, own.stop)
            return
        indices = self._shuffled()
        for start in range(self.position * self.batch_size, len(indices), self.batch_size):
            self.position += 1
            yield indices[start : start + self.batch_size]

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it that were handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration resume where `state` was taken."""
        self.epoch = state["epoch"]
        self.resume_at = state["position"] % max(len(self), 1)

    def _shuffled(self) -> Tensor:
        """Samples that this rank sees in the epoch, in order."""
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        share = self.batch_size * self.accumulate
        whole = order[: len(self) * self.batch_size * self.shard.world_size]
        return whole.view(-1, self.shard.world_size, share)[:, self.shard.rank].reshape(-1)

    def _own_batches(self) -> list[range]:
        return evaluation_batches(self.size, self.batch_size, self.shard)


def evaluation_batches(size: int, batch_size: int, shard: Shard) -> list[range]:
    """Places of a rank's batches among `size` samples, each of which is in one rank's.

    Ranks have equally many, as far as the samples allow it: in every forward of a sharded model all ranks take part.
    """
    rank, world = shard.rank, shard.world_size
    own = range(size * rank // world, size * (rank + 1) // world)
    if world == 1:
        return [own[start : start + batch_size] for start in range(0, size, batch_size)]
    number = min(math.ceil(math.ceil(size / world) / batch_size), len(own))
    return [own[len(own) * i // number : len(own) * (i + 1) // number] for i in range(number)]


class Order(Protocol):
    """What a rank reads of a map-style data set, epoch by epoch: batches of indices."""

    seed: int
    shard: Shard
    epoch: int
    position: int
    """Batches that were handed out in this epoch."""
    resume_at: int
    """Batch at which the next iteration begins."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int) -> None: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class ResidentLoader:
    """Batches by index from tensors that stay on `device`."""

    def __init__(
        self,
        inputs: Tensor | Mapping[str, Tensor],
        targets: Tensor,
        order: DistributedBatchSampler,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or targets.device
        self.inputs = _mapped(inputs, lambda values: values.to(self.device))
        self.targets = targets.to(self.device)
        self.sampler = self.batch_sampler = order
        """Where Lightning looks for `set_epoch`, and whether the order is a sequential one."""

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for index in self.sampler.batches():
            if self.sampler.shuffle:
                where = index.to(self.device, non_blocking=True)
                yield _mapped(self.inputs, lambda v: v.index_select(0, where)), self.targets.index_select(0, where)  # noqa: B023 - called at once
            else:
                chosen = slice(int(index[0]), int(index[-1]) + 1)
                yield _mapped(self.inputs, lambda v: v[chosen]), self.targets[chosen]  # noqa: B023 - called at once

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Position in the data, see `BatchOrder`."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume where `state` was taken."""
        self.sampler.load_state_dict(state)


class MapLoader(DataLoader[Any]):
    """Samples of a map-style data set read through `num_workers` processes, in the same order as a `ResidentLoader`."""

    def __init__(self, dataset: Dataset[Any], order: Order, *, num_workers: int = 0, **options: Any) -> None:
        """`options`: further arguments of torch's DataLoader. With `batch_size=None` the order gives single indices."""
        self.order = order
        self._consumed = 0
        whole = "batch_size" in options
        options["sampler" if whole else "batch_sampler"] = _WithSeeds(order) if num_workers else order
        super().__init__(
            SeededInWorkers(dataset) if num_workers else dataset,
            num_workers=num_workers,
            # Its own: an iterator would draw from the process's random numbers, and a continued run makes one more.
            generator=torch.Generator().manual_seed(order.seed),
            **{"persistent_workers": num_workers > 0, **options},
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._consumed = self.order.resume_at
        for batch in super().__iter__():
            self._consumed += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.order.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Position in the data: batches that were handed out, not those that workers have read ahead."""
        return {**self.order.state_dict(), "position": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume where `state` was taken."""
        self.order.load_state_dict(state)


class _WithSeeds:
    """What an order gives, each as `(epoch, seed, indices)`: the seed is the same whenever and by whom it is read."""

    def __init__(self, order: Order) -> None:
        self.sampler = order

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        order = self.sampler
        base = _mixed(order.seed, order.epoch, order.shard.rank)
        for indices in order:
            yield order.epoch, _mixed(base, order.position) % 2**32, indices


class SeededInWorkers(Dataset[Any]):
    """Seeds the worker before each batch, so that random transforms can be done again from inside an epoch.

    Everything else is the data set's own.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self._epoch = -1

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles it
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, asked: tuple[int, int, Any]) -> Any:
        epoch, seed, index = asked
        self._begin(epoch, seed)
        return self.dataset[index]

    def __getitems__(self, asked: tuple[int, int, list[Any]]) -> list[Any]:
        epoch, seed, indices = asked
        self._begin(epoch, seed)
        return samples_of(self.dataset, indices)

    def _begin(self, epoch: int, seed: int) -> None:
        seed_everything(seed)
        if epoch != self._epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._epoch = epoch


def samples_of(dataset: Any, indices: list[Any]) -> list[Any]:
    """The samples, at once where the data set can."""
    at_once = getattr(dataset, "__getitems__", None)
    return list(at_once(indices)) if at_once else [dataset[index] for index in indices]


def _mapped(inputs: Tensor | Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> Any:
    """One tensor changed, or each of several by name."""
    return change(inputs) if isinstance(inputs, Tensor) else {name: change(values) for name, values in inputs.items()}


def _mixed(seed: int, epoch: int, rank: int = 0) -> int:
    """One seed of all, so that neighbouring seeds do not share the orders of neighbouring epochs."""
    return (seed * 1_000_003 + epoch * 7_919 + rank * 104_729_017) % 2**63
