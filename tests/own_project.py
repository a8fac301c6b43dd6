"""A user's project with data of many kinds and modules of its own."""

from __future__ import annotations

from pathlib import Path

from helpers import write_conf, write_module

CODE = '''
import json
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler, random_split

SIZE = 53
Named = namedtuple("Named", "x index")


@dataclass
class Sample:
    x: torch.Tensor
    index: torch.Tensor


def x_of(index):
    return torch.sin(torch.arange(1, 9) * (index + 1.0))


class Samples(Dataset):
    """Of a size that no batch divides."""

    def __init__(self, kind="tuple", size=SIZE, first=0):
        self.kind, self.size, self.first = kind, size, first

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        index = self.first + number
        if self.kind == "dict":
            return {"x": x_of(index), "index": index}
        return Named(x_of(index), index) if self.kind == "named" else (x_of(index), index)


class Stream(IterableDataset):
    """An order of its own for each pass, by torch's random numbers."""

    def __init__(self, size=SIZE, first=0):
        self.size, self.first = size, first

    def __iter__(self):
        for number in torch.randperm(self.size).tolist():
            yield x_of(self.first + number), self.first + number


class Stateful(IterableDataset):
    """Knows where it is."""

    def __init__(self, size=SIZE, first=0):
        self.size, self.first, self.at = size, first, 0

    def __iter__(self):
        while self.at < self.size:
            self.at += 1
            yield x_of(self.first + self.at - 1), self.first + self.at - 1
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def as_sample(samples):
    return Sample(torch.stack([x for x, _ in samples]), torch.tensor([index for _, index in samples]))


class Data(pl.LightningDataModule):
    def __init__(self, kind, batch_size, num_workers=0):
        super().__init__()
        self.kind, self.options = kind, {"batch_size": batch_size, "num_workers": num_workers}

        self.count = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.count += self.trainer.training
        return batch

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def setup(self, stage):
        self.parts = random_split(Samples(size=SIZE + 9), [SIZE, 9])

    def train_dataloader(self):
        kind, options = self.kind, self.options
        if kind == "weighted":
            return DataLoader(Samples(), sampler=WeightedRandomSampler([1.0] * SIZE, SIZE), **options)
        if kind == "dataclass":
            return DataLoader(Samples(), shuffle=True, collate_fn=as_sample, **options)
        if kind == "split":
            return DataLoader(self.parts[0], shuffle=True, **options)
        if kind == "combined":
            loaders = [DataLoader(Samples(size=48), shuffle=True, **options), DataLoader(Samples(size=16), **options)]
            return CombinedLoader(loaders, "max_size_cycle")
        if kind in ("stream", "stateful"):
            return DataLoader(Stream() if kind == "stream" else Stateful(), **options)
        if kind.startswith("hf"):
            return DataLoader(self.hugging_face(), shuffle=True if kind == "hf" else None, **options)
        return DataLoader(Samples(kind), shuffle=True, **options)

    def hugging_face(self):
        import datasets

        columns = {"x": [x_of(i).tolist() for i in range(SIZE)], "index": list(range(SIZE))}
        data = datasets.Dataset.from_dict(columns).with_format("torch")
        return data if self.kind == "hf" else data.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=20)

    def val_dataloader(self):
        options = {**self.options, "num_workers": 0}
        return DataLoader(self.parts[1] if self.kind == "split" else Samples(size=9, first=100), **options)

    def test_dataloader(self):
        options = {**self.options, "num_workers": 0}
        return DataLoader(Stateful(11, 200) if "stream" in self.kind else Samples(size=11, first=200), **options)


def splits():
    return {"train": Samples("dict"), "validation": Samples("dict", 9, 100), "test": Samples("dict", 11, 200)}


def parts_of(batch):
    if isinstance(batch, list) and isinstance(batch[0], list):  # of several loaders
        return parts_of(batch[0])
    if isinstance(batch, dict):
        return batch["x"], batch["index"]
    return (batch.x, batch.index) if isinstance(batch, Sample) else tuple(batch)


class Recording(pl.LightningModule):
    """Writes which samples each rank had in which step, and their loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
        self.register_buffer("scale", torch.ones(1))  # which DDP exchanges before each batch
        self.seen = {"train": [], "validate": [], "test": []}

    def loss_of(self, batch, stage):
        x, index = parts_of(batch)
        loss = (self.scale * self.net(x) - x.sum(-1, keepdim=True)).pow(2).mean()
        self.seen[stage].append([self.trainer.current_epoch, self.global_step, index.tolist(), loss.item()])
        return loss

    def training_step(self, batch, batch_idx):
        return self.loss_of(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss_of(batch, "validate"), sync_dist=True, batch_size=len(parts_of(batch)[1]))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss_of(batch, "test"), sync_dist=True, batch_size=len(parts_of(batch)[1]))

    def on_test_end(self):
        place = Path(self.trainer.default_root_dir, f"seen-{self.global_rank}.json")
        place.write_text(json.dumps(self.seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
'''

CONF = {
    "model/own.yaml": "_target_: own.Recording\n",
    "data/own.yaml": "_target_: own.Data\nkind: tuple\nglobal_batch_size: 8\n",
    "data/own_splits.yaml": "_target_: own.splits\nglobal_batch_size: 8\n",
}
OWN = ("model=own", "data=own", "trainer.monitor=val/loss", "trainer.mode=min", "trainer.max_epochs=2")
OWN += ("tracking=off", "hardware=cpu")


def write_own_project(project: Path) -> None:
    """`own.py` and the groups that name it."""
    write_module(project, "own", CODE)
    write_conf(project, CONF)
