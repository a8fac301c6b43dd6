"""One user's loader, or several in lists, mappings and CombinedLoaders, as this rank reads them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from hpcexp.errors import ConfigError
from hpcexp.train.data.adapters.orders import UserOrder, fold_problem, is_plain, sampler_problem
from hpcexp.train.data.adapters.self_sharding import WORD, divides_by
from hpcexp.train.data.adapters.streams import Cut, Stream, StreamLoader
from hpcexp.train.data.folds import Fold
from hpcexp.train.data.loaders import MapLoader, Shard

_OWN_WAY = ("__iter__", "_get_iterator", "__len__")
"""What a kind of DataLoader that hpcexp cannot shard does its own way."""


@dataclass(frozen=True)
class Terms:
    """What loaders are adapted to."""

    seed: int
    shard: Shard
    per_rank: int | None
    """Samples of a rank's training batch by `data.global_batch_size`; None where that is not set."""
    overfit: int = 0
    """`trainer.overfit_batches`"""
    fold: Fold | None = None
    """The held-out part of the training data, which is validated on."""
    said: set[str] = field(default_factory=set)

    def say(self, text: str) -> None:
        """A line in the run's log, once."""
        if self.shard.rank == 0 and text not in self.said:
            self.said.add(text)
            print(text, file=sys.stderr, flush=True)


def adapt(loaders: Any, split: str, terms: Terms, *makers: Any, epoch: int = 0) -> Any:
    """The same loaders, each giving this rank its part; ConfigError where one cannot.

    `makers`: who made them, and may have divided them already. `epoch`: the first that is read.
    """
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "sequential")
    names = [split] if len(combined.flattened) == 1 else [f"{split}[{i}]" for i in range(len(combined.flattened))]
    adapted = [
        _adapted(loader, f"data: the {name} loader", split, terms, makers, epoch)
        for loader, name in zip(combined.flattened, names, strict=True)
    ]
    combined.flattened = adapted
    return combined if combined is loaders else combined.iterables


def _adapted(loader: Any, name: str, split: str, terms: Terms, makers: tuple[Any, ...], epoch: int) -> Any:
    if not isinstance(loader, DataLoader) or (own := _own_way(loader)):
        return _foreign(loader, name, terms, own if isinstance(loader, DataLoader) else "")
    if not loader.in_order and loader.num_workers:
        raise ConfigError(
            f"{name} has in_order=False: which batch comes next depends on the speed of its workers, so no run "
            "can repeat or resume it.\nFix: leave in_order out."
        )
    training = split == "train"
    if training:
        _check_batch_size(loader, name, terms)
    options = _options(loader)
    if isinstance(loader.dataset, IterableDataset):
        return _stream(loader, name, terms, makers, options, training=training, epoch=epoch)
    if problem := sampler_problem(loader, name, terms.shard):
        raise ConfigError(problem)
    fold = terms.fold if split in ("train", "val") else None
    if fold is not None and (problem := fold_problem(loader, name)):
        raise ConfigError(problem)
    order = UserOrder(
        loader, name, seed=terms.seed, shard=terms.shard, training=training, overfit=terms.overfit, fold=fold
    )
    order.epoch = epoch
    if loader.batch_sampler is None:
        options["batch_size"] = None
    return UserMapLoader(loader.dataset, order, collate_fn=loader.collate_fn, **options)


class UserMapLoader(MapLoader):
    """A user's map-style DataLoader with a rank's share of its batches."""

    @property
    def weights(self) -> dict[int, float]:
        """Batch → weight of its gradient in the mean over ranks, where the ranks' batches are not of one size."""
        return self.order.weights  # type: ignore[attr-defined,no-any-return]


def _stream(
    loader: DataLoader[Any],
    name: str,
    terms: Terms,
    makers: tuple[Any, ...],
    options: dict[str, Any],
    *,
    training: bool,
    epoch: int,
) -> StreamLoader:
    if terms.overfit:
        raise ConfigError(
            f"trainer.overfit_batches={terms.overfit}, but {name.removeprefix('data: ')} reads a stream, whose first "
            "samples hpcexp does not keep.\nFix: a data set with a length, or trainer.limit_train_batches."
        )
    if terms.fold is not None and name.removeprefix("data: the ").startswith(("train", "val")):
        raise ConfigError(
            f"data.folds={terms.fold.count}, but {name.removeprefix('data: ')} reads a stream, whose samples have no "
            "numbers.\nFix: a data set with a length, or ~data.folds."
        )
    shard, workers = terms.shard, loader.num_workers
    divided = divides_by(loader.dataset, name, shard, *makers)
    if "ranks" in divided:
        shard = Shard()
    cut = Cut(loader.batch_size, loader.drop_last, shard, "workers" in divided and workers > 0, training)
    stream = Stream(loader.dataset, cut, loader.collate_fn, seed=terms.seed, shared=workers > 0)
    kind = type(loader.dataset).__name__
    readers = shard.world_size * (1 if cut.by_workers else max(workers, 1))
    if readers > 1:
        terms.say(
            f"{name}: each of {readers} processes reads the whole stream of {kind} and keeps its part. "
            f"A data set that divides itself says so: {WORD} = 'ranks', 'workers' or 'ranks and workers'."
        )
    if training and not stream.has_state:
        terms.say(
            f"{name}: {kind} has no exact state_dict. A run that resumes within an epoch reads the stream again up to "
            "where it was, which takes as long as the first time without training."
        )
    agree = agreement() if training and "ranks" in divided and terms.shard.world_size > 1 else None
    return StreamLoader(stream, name, epoch=epoch, agree=agree, **options)


def _foreign(loader: Any, name: str, terms: Terms, own: str) -> Any:
    """An iterable that hpcexp does not know: as it is."""
    if terms.shard.world_size > 1 and "ranks" not in getattr(loader, WORD, ""):
        what = f"overrides {own} of DataLoader" if own else "is no torch DataLoader"
        raise ConfigError(
            f"{name}: {type(loader).__name__} {what}, so hpcexp cannot give each of {terms.shard.world_size} ranks its "
            f"part.\nFix: a plain DataLoader; or {WORD} = 'ranks' in it if it divides itself; or hardware.devices=1."
        )
    return loader


def _own_way(loader: DataLoader[Any]) -> str:
    """What a loader's class does differently from torch's DataLoader; empty where it can be built anew."""
    kind = type(loader)
    if kind.__module__.startswith("torchdata."):  # StatefulDataLoader: hpcexp keeps the position itself
        return ""
    return next((name for name in _OWN_WAY if getattr(kind, name) is not getattr(DataLoader, name)), "")


def _options(loader: DataLoader[Any]) -> dict[str, Any]:
    """How a loader reads, without what."""
    names = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "persistent_workers")
    options = {name: getattr(loader, name) for name in names}
    return options | ({"prefetch_factor": loader.prefetch_factor} if loader.num_workers else {})


def _check_batch_size(loader: DataLoader[Any], name: str, terms: Terms) -> None:
    """ConfigError where the loader's own size is not what `data.global_batch_size` comes to."""
    sampler = loader.batch_sampler
    own = loader.batch_size if is_plain(sampler, BatchSampler) else getattr(sampler, "batch_size", loader.batch_size)
    if terms.per_rank is None:
        if own is not None and terms.shard.world_size > 1:
            terms.say(
                f"{name}: its batch_size={own} is of each rank, {own * terms.shard.world_size} samples over all. "
                "data.global_batch_size keeps a step the same on any number of ranks."
            )
        return
    if own != terms.per_rank:
        makes = f"makes batches of {own}" if own is not None else "decides itself how large its batches are"
        raise ConfigError(
            f"data.global_batch_size asks for batches of {terms.per_rank} on each of {terms.shard.world_size} ranks, "
            f"and {name.removeprefix('data: ')} {makes}.\n"
            "Fix: let the data module take `batch_size`, which hpcexp passes; or leave data.global_batch_size out: the "
            "loader's own size then is each rank's."
        )


def agreement() -> Callable[[bool], bool]:
    """Asks all ranks, over the CPU, whether every one has a next batch."""
    group = torch.distributed.new_group(backend="gloo")

    def agree(is_there: bool) -> bool:
        value = torch.tensor([int(is_there)])
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN, group=group)
        return bool(value.item())

    return agree
