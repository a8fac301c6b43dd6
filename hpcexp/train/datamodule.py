"""A Source as Lightning wants it, and a user's own LightningDataModule as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import Subset

from hpcexp.data.source import Samples, Source, Split, Tensors, as_tensors
from hpcexp.plan import Batch
from hpcexp.train.loader import BatchOrder, MapLoader, ResidentLoader, Shard

RESIDENT_SHARE = 0.25
"""A set is held as tensors by `loader=auto` where it takes at most this share of the device's free memory."""
EVAL_BATCH_BYTES = 64 << 20
"""Inputs in an evaluation batch where `data.eval_batch_size` does not say how many samples it has."""


class SourceData(pl.LightningDataModule):
    """Loaders of a Source's splits: resident or map-style, sharded over ranks by themselves."""

    def __init__(
        self, source: Source, batch: Batch, config: Mapping[str, Any], *, shard: Shard, device: torch.device
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.source, self.batch, self.shard = source, batch, shard
        self._device = device
        self._data, self._seed = config["data"], config["seed"]
        self._overfit = config["trainer"].get("overfit_batches") or 0
        self._loaders: dict[Split, Any] = {}

    def train_dataloader(self) -> Any:
        """Shuffled global batches, whole ones only."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Every sample once."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Every sample once."""
        return self._loader("test")

    def resident(self) -> bool:
        """Whether the set is held as tensors."""
        loader = self._data.get("loader", "auto")
        if loader != "auto":
            return bool(loader == "resident")
        return self.source.resident_bytes() <= RESIDENT_SHARE * free_memory(self._device)

    def _loader(self, split: Split) -> Any:
        if split not in self._loaders:
            self._loaders[split] = self._make_loader(split)
        return self._loaders[split]

    def _make_loader(self, split: Split) -> Any:
        samples = self._samples(split)
        order = BatchOrder(
            len(samples),
            self.batch.per_rank if split == "train" else self._eval_batch(samples),
            shuffle=split == "train",
            seed=self._seed,
            shard=self.shard,
            accumulate=self.batch.accumulate if split == "train" else 1,
        )
        if self.resident():
            held = as_tensors(samples)
            return ResidentLoader(held.inputs, held.targets, order, self._device)
        workers = self._data.get("num_workers", 0)
        return MapLoader(samples, order, num_workers=workers, pin_memory=self._device.type == "cuda")  # type: ignore[arg-type]

    def _samples(self, split: Split) -> Tensors | Samples:
        if not self._overfit or split == "test":
            return self.source.load(split)
        samples = self.source.load("train")
        return _first(samples, min(len(samples), self._overfit * self.batch.global_size))

    def _eval_batch(self, samples: Tensors | Samples) -> int:
        if size := self._data.get("eval_batch_size"):
            return int(size)
        bytes_each = samples[0][0].numel() * 4 if len(samples) else 1
        return int(max(1, min(len(samples), EVAL_BATCH_BYTES // max(1, bytes_each))))


def free_memory(device: torch.device) -> int:
    """Bytes that the device has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import os

    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _first(samples: Tensors | Samples, count: int) -> Tensors | Samples:
    if isinstance(samples, Tensors):
        return Tensors(samples.inputs[:count], samples.targets[:count])
    return Subset(samples, range(count))  # type: ignore[arg-type]
