"""A Source as Lightning wants it, and a user's own LightningDataModule as it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from hpcexp.data.contradictions import named_inputs, sample_problem
from hpcexp.data.source import NamedTensors, Samples, Source, Split, Tensors, as_tensors
from hpcexp.data_spec import Classes, DataSpec
from hpcexp.errors import DataError
from hpcexp.plan import Batch
from hpcexp.schema.settings import Settings
from hpcexp.train.data.adapters.adapt import Terms, adapt
from hpcexp.train.data.folds import fold_in, part_of
from hpcexp.train.data.loaders import DistributedBatchSampler, MapLoader, ResidentLoader, Shard

RESIDENT_SHARE = 0.25
"""A set is held as tensors by `loader=auto` where it takes at most this share of the device's free memory, of which
the ranks of a node have equal parts on the CPU."""
EVAL_BATCH_BYTES = 64 << 20
"""Inputs in an evaluation batch where `data.eval_batch_size` does not say how many samples it has."""


class SourceData(pl.LightningDataModule):
    """Loaders of a Source's splits: resident or map-style, sharded over ranks by themselves."""

    def __init__(
        self,
        source: Source,
        batch: Batch,
        settings: Settings,
        *,
        shard: Shard,
        device: torch.device,
        ranks_per_node: int = 1,
        collate: Callable[[Sequence[Any]], Any] | None = None,
    ) -> None:
        """`collate`: makes batches of samples where the source does not; None: as torch does."""
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.source, self.batch, self.shard = source, batch, shard
        self._device = device
        self._ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or ranks_per_node)
        self._data, self._seed = settings.data, settings.seed
        self._overfit = settings.trainer.overfit_batches
        self._loaders: dict[Split, Any] = {}
        self._collate = source.collate if source.collates else collate

    def train_dataloader(self) -> Any:
        """Shuffled global batches, whole ones only."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Every sample once."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Every sample once."""
        return self._loader("test")

    @cached_property
    def resident(self) -> bool:
        """Whether the set is held as tensors: decided once, before the first split takes memory."""
        if self._data.loader != "auto":
            return self._data.loader == "resident"
        free = free_memory(self._device) // (self._ranks_per_node if self._device.type == "cpu" else 1)
        return self.source.resident_bytes() <= RESIDENT_SHARE * free

    def _loader(self, split: Split) -> Any:
        if split not in self._loaders:
            self._loaders[split] = self._make_loader(split)
        return self._loaders[split]

    def _make_loader(self, split: Split) -> Any:
        samples = self._samples(split)
        if not hasattr(samples, "__getitem__"):
            return self._stream(samples, split)
        order = DistributedBatchSampler(
            len(samples),
            self.batch.per_rank if split == "train" else self._eval_batch(samples),
            shuffle=split == "train",
            seed=self._seed,
            shard=self.shard,
            accumulate=self.batch.accumulate if split == "train" else 1,
        )
        if self._is_held(samples):
            held = as_tensors(samples)
            return ResidentLoader(held.inputs, held.targets, order, self._device)
        workers, pin_memory = self._data.num_workers, self._device.type == "cuda"
        return MapLoader(samples, order, num_workers=workers, pin_memory=pin_memory, collate_fn=self._collate)

    def _stream(self, samples: Iterable[Any], split: Split) -> Any:
        """Batches of a split that is only iterable; of training whole ones."""
        is_training, per_rank = split == "train", self.batch.per_rank
        loader = DataLoader(
            samples if isinstance(samples, IterableDataset) else _Stream(samples),
            batch_size=per_rank if is_training else self._data.eval_batch_size or per_rank,
            num_workers=self._data.num_workers,
            collate_fn=self._collate,
            drop_last=is_training,
        )
        terms = Terms(self._seed, self.shard, per_rank if is_training else None, self._overfit if is_training else 0)
        return adapt(loader, split, terms, self.source)

    def _is_held(self, samples: Tensors | NamedTensors | Samples) -> bool:
        """Whether a split is held as tensors; DataError where `loader=resident` asks for it and they are none."""
        if not self.resident or isinstance(samples, Tensors | NamedTensors):
            return self.resident
        facts = self.source.facts()
        is_pair = not len(samples) or (isinstance(samples[0], tuple) and not isinstance(samples[0][0], Mapping))
        if is_pair and not self.source.collates and all(spec.is_fixed for spec in facts.inputs.values()):
            return True
        if self._data.loader == "resident":
            name = type(self.source).__qualname__
            raise DataError(
                f"data.loader=resident: samples of {name} are no pairs of tensors of one shape, which could be held as "
                "two tensors.\nFix: data.loader=map; or let load() give Tensors or NamedTensors."
            )
        return False

    def _samples(self, split: Split) -> Any:
        if not self._overfit or split == "test":
            return self._loaded(split)
        samples = self._loaded("train")
        if not hasattr(samples, "__getitem__"):
            return samples
        return _first(samples, min(len(samples), self._overfit * self.batch.global_size))

    def _loaded(self, split: Split) -> Any:
        """A split, where there are folds by these."""
        fold = fold_in(self._data)
        if fold is None or split == "test":
            return self._of_source(split)
        targets, whole = self.source.facts().targets, self._of_source("train")
        if not hasattr(whole, "__getitem__"):
            raise DataError("data.folds: a stream of samples cannot be cut into folds.\nFix: leave data.folds out.")
        has_classes = isinstance(targets, Classes) and not targets.shape and not targets.multiple
        return part_of(whole, fold, has_classes=has_classes, held_out=split == "val")

    def _of_source(self, split: Split) -> Any:
        """A split as its source gives it; DataError where that is not what its facts say."""
        samples, facts = self.source.load(split), self.source.facts()
        if problem := _contradiction(samples, facts.num_samples[split], facts):
            name = f"{type(self.source).__module__}.{type(self.source).__qualname__}"
            raise DataError(f"{name}.load({split!r}) gives {problem}.\nFix: let load() and facts() say the same.")
        return samples

    def _eval_batch(self, samples: Tensors | NamedTensors | Samples) -> int:
        if self._data.eval_batch_size:
            return self._data.eval_batch_size
        inputs = named_inputs(samples[0], self.source.facts()).values() if len(samples) else ()
        bytes_each = sum(value.numel() * 4 for value in inputs if isinstance(value, torch.Tensor))
        return int(max(1, min(len(samples), EVAL_BATCH_BYTES // max(1, bytes_each))))


def _contradiction(samples: Any, expected: int | None, facts: DataSpec) -> str | None:
    """What `samples` are, where they are not `expected` many as the facts say."""
    if not hasattr(samples, "__getitem__"):
        is_stream = hasattr(samples, "__iter__")
        return None if is_stream else f"a {type(samples).__name__}, neither Tensors nor a data set nor an iterable"
    if not hasattr(samples, "__len__"):
        return f"a {type(samples).__name__} without a length"
    if isinstance(samples, Tensors | NamedTensors):
        named = samples.inputs if isinstance(samples, NamedTensors) else {"": samples.inputs}
        for name, values in named.items():
            if len(values) != len(samples.targets):
                return f"{len(values)} inputs{name and f' {name}'} and {len(samples.targets)} targets"
    if len(samples) != expected:
        return f"{len(samples)} samples, where facts() says {expected}"
    return sample_problem(samples[0], facts) if expected else None


class _Stream(IterableDataset[Any]):
    """An iterable of samples, begun anew for each epoch."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


def free_memory(device: torch.device) -> int:
    """Bytes that the device has left; of the CPU, what the machine and the job's cgroup have left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_available(), *_cgroup_rooms()])


def _available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What the machine can give without swapping, caches included."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _cgroup_rooms(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Room below the limit of this process's cgroup (version 2) and of each above it that has one."""
    try:
        own = next(line[3:] for line in cgroup.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    here = root / own.lstrip("/")
    return [room for place in (here, *here.parents) if (room := _room(place)) is not None]


def _room(cgroup: Path) -> int | None:
    try:
        return max(0, int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or `max`
        return None


def _first(samples: Tensors | NamedTensors | Samples, count: int) -> Tensors | NamedTensors | Samples:
    if isinstance(samples, Tensors):
        return Tensors(samples.inputs[:count], samples.targets[:count])
    if isinstance(samples, NamedTensors):
        return NamedTensors({name: v[:count] for name, v in samples.inputs.items()}, samples.targets[:count])
    return Subset(samples, range(count))  # type: ignore[arg-type]
