"""Which samples of a user's map-style DataLoader a rank reads, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from hpcexp.errors import DataError
from hpcexp.train.data.folds import Fold
from hpcexp.train.data.loaders import Shard, evaluation_batches
from hpcexp.train.runtime.seeds import mixed, seeded

Batches = Sequence[Any]
"""Of one epoch: what a DataLoader's sampler gives for each batch, a list of indices or a single one."""


class UserOrder:
    """A rank's share of what a user's sampler gives: a function of seed and epoch, the same in every attempt.

    The sampler runs on every rank with the same random numbers. Its batches are cut so that the same samples are in the
    same step whatever the number of ranks; those of a user's own `batch_sampler` are dealt out whole.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        name: str,
        *,
        seed: int,
        shard: Shard,
        training: bool,
        overfit: int = 0,
        fold: Fold | None = None,
    ) -> None:
        """`overfit`: read the first epoch's so many first steps, in every epoch; 0: everything.

        `fold`: train on the other folds of the data set; evaluate this one.
        """
        self.seed, self.shard, self.training, self.overfit = seed, shard, training, overfit
        self.epoch = self.cycle = self.position = self.resume_at = 0
        self._next_cycle = 0
        self._loader, self._name = loader, name
        self._kept = None if fold is None else fold.kept(loader.dataset, held_out=not training)
        """Indices that are read, of those that the sampler gives."""
        self._known: tuple[tuple[int, int], Batches] | None = None
        self._promised: int | None = None
        self.weights: dict[int, float] = {}
        """Batch → weight of its gradient in the mean over ranks, where the ranks' batches are not of one size."""

    @property
    def sampler(self) -> UserOrder:
        """Itself: where Lightning looks in a batch sampler for `set_epoch`."""
        return self

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[Any]:
        if self.training:
            self.cycle = self._next_cycle
        self._next_cycle = self.cycle + 1
        self.position, self.resume_at = self.resume_at, 0
        batches = self._batches()
        while self.position < len(batches):
            self.position += 1
            batch = batches[self.position - 1]
            yield batch.tolist() if isinstance(batch, Tensor) else list(batch) if isinstance(batch, range) else batch

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes; a shorter one of several loaders begins anew within it."""
        if epoch != self.epoch:
            self.epoch, self._next_cycle, self.cycle = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, how often it was begun, and batches of it that were handed out."""
        return {"epoch": self.epoch, "cycle": self.cycle, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration resume where `state` was taken."""
        self.epoch, self.cycle = state["epoch"], state["cycle"]
        is_done = state["position"] >= len(self)
        self._next_cycle, self.resume_at = (self.cycle + 1, 0) if is_done else (self.cycle, state["position"])

    def _batches(self) -> Batches:
        """Batches of this rank in the epoch, made once."""
        of = (self.epoch, self.cycle)
        if self._known is None or self._known[0] != of:
            self._known = (of, self._made())
            number = len(self._known[1])
            if self.training and self._promised not in (None, number):
                raise DataError(
                    f"{self._name}: its sampler gives {number} batches in epoch {self.epoch + 1}, and gave "
                    f"{self._promised} before.\nTraining plans its epochs with the number of the first.\n"
                    "Fix: let the sampler give as many batches in every epoch, or limit it with "
                    "trainer.limit_train_batches."
                )
            self._promised = number
        return self._known[1]

    def _made(self) -> Batches:
        batch_sampler: Any = self._loader.batch_sampler
        world = self.shard.world_size
        if is_plain(batch_sampler, BatchSampler):
            size, is_held_out = batch_sampler.batch_size, self._kept is not None and not self.training
            indices = self._of_fold(batch_sampler.sampler)[: self.overfit * size * world or None]
            return self._cut(indices, size, drop_last=batch_sampler.drop_last and not is_held_out)
        batches = self._drawn(batch_sampler if batch_sampler is not None else self._loader.sampler)
        return self._dealt(batches[: self.overfit * world or None])

    def _cut(self, indices: Sequence[int], size: int, *, drop_last: bool) -> Batches:
        """Batches of `size`; a step's are `size × world_size` consecutive indices, of which each rank has its part."""
        rank, world = self.shard.rank, self.shard.world_size
        step, total = size * world, len(indices)
        whole, rest = divmod(total, step)
        if drop_last:
            total, rest = whole * step, 0
        if not self.training:
            return [indices[own.start : own.stop] for own in evaluation_batches(total, size, self.shard)]
        own = range(rest * rank // world, rest * (rank + 1) // world) if rest >= world else range(0)
        self.weights = {whole: len(own) * world / rest} if own and rest % world else {}
        last = range(whole * step + own.start, whole * step + own.stop)
        return _Parts(indices, range(rank * size, whole * step, step), size, last)

    def _of_fold(self, sampler: Any) -> Any:
        """What the sampler gives of the folds that are read; the one that is held out in order."""
        if self._kept is None:
            return self._drawn(sampler)
        if not self.training:
            return sorted(self._kept)
        drawn: Any = self._drawn(sampler)
        return [i for i in (drawn.tolist() if isinstance(drawn, Tensor) else drawn) if i in self._kept]

    def _dealt(self, batches: Sequence[Any]) -> Batches:
        """Whole batches: of each step one to each rank; in evaluation one after the other, none left out."""
        rank, world = self.shard.rank, self.shard.world_size
        if self.training:
            return batches[rank : len(batches) // world * world : world]
        return batches[len(batches) * rank // world : len(batches) * (rank + 1) // world]

    def _drawn(self, sampler: Any) -> Any:
        """What a sampler gives in this epoch: the same on every rank and in every attempt."""
        size = len(self._loader.dataset)  # type: ignore[arg-type]
        is_distributed = is_plain(sampler, DistributedSampler)
        if is_plain(sampler, SequentialSampler) or (is_distributed and not sampler.shuffle):
            return range(size)
        # One that torchdata's makes itself is seeded by chance.
        generator = None if _is_torchdatas(sampler) else getattr(sampler, "generator", None)
        own = generator.initial_seed() if isinstance(generator, torch.Generator) else getattr(sampler, "seed", 0)
        epoch, cycle = (0, 0) if self.overfit else (self.epoch, self.cycle)
        seed = mixed(self.seed, own if isinstance(own, int) else 0, epoch, cycle)
        is_shuffled = is_plain(sampler, RandomSampler) and not sampler.replacement and len(sampler) == size
        if is_distributed or is_shuffled:
            return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        with seeded(seed):
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            return list(sampler)


class _Parts(Sequence[Any]):
    """Batches cut from indices when they are asked for: of 10⁸ samples they would take more memory than these."""

    def __init__(self, indices: Sequence[int], starts: range, size: int, last: range) -> None:
        """`last`: the place of a last, smaller batch, if it is not empty."""
        self._indices, self._starts, self._size, self._last = indices, starts, size, last

    def __len__(self) -> int:
        return len(self._starts) + bool(self._last)

    def __getitem__(self, number: Any) -> Any:
        if number < len(self._starts):
            return self._indices[self._starts[number] : self._starts[number] + self._size]
        return self._indices[self._last.start : self._last.stop]


def is_plain(sampler: Any, kind: type) -> bool:
    """Whether a sampler is torch's own of that kind, or torchdata's of that name, which adds a state only."""
    return type(sampler) is kind or (_is_torchdatas(sampler) and type(sampler).__name__ == kind.__name__)


def _is_torchdatas(sampler: Any) -> bool:
    return type(sampler).__module__.startswith("torchdata.")


def fold_problem(loader: DataLoader[Any], name: str) -> str | None:
    """Why the data set of a training loader cannot be cut into folds."""
    sampler: Any = getattr(loader.batch_sampler, "sampler", None)
    is_whole = any(is_plain(sampler, kind) for kind in (SequentialSampler, DistributedSampler)) or (
        is_plain(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    )
    if is_plain(loader.batch_sampler, BatchSampler) and is_whole:
        return None
    what = loader.batch_sampler if not is_plain(loader.batch_sampler, BatchSampler) else sampler
    return (
        f"data.folds: {name.removeprefix('data: ')} reads by its {type(what).__name__}, which does not know of folds.\n"
        "Fix: shuffle=True or no sampler; or ~data.folds."
    )


def sampler_problem(loader: DataLoader[Any], name: str, shard: Shard) -> str | None:
    """Why ranks cannot have their shares of what a loader's sampler gives."""
    batch_sampler: Any = loader.batch_sampler
    samplers = [loader.sampler if batch_sampler is None else batch_sampler, getattr(batch_sampler, "sampler", None)]
    for sampler in samplers:
        is_divided = isinstance(sampler, DistributedSampler) and not is_plain(sampler, DistributedSampler)
        if is_divided and shard.world_size > 1:
            return (
                f"{name}: its sampler {type(sampler).__name__} is a DistributedSampler of its own kind, which gives "
                "each rank its part and pads it.\nhpcexp shards data itself, without padding.\n"
                "Fix: let it be a plain Sampler over the whole data set."
            )
    outer = samplers[0] if not is_plain(batch_sampler, BatchSampler) else batch_sampler.sampler
    try:
        len(outer)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return (
            f"{name}: its sampler {type(outer).__name__} has no length, so hpcexp cannot know where an epoch ends.\n"
            "Fix: give it a `__len__`."
        )
    return None
