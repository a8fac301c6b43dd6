"""Trainings in this process, less the process of a job, and a user's module and data for them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_plans import digits_plan

from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Point, read_points
from hpcexp.train.engine.fit import train
from hpcexp.train.engine.interrupts import Signals
from hpcexp.train.runtime.log_filters import quiet
from hpcexp.train.runtime.rank import Rank

CONF = Path(__file__).parents[3] / "conf"
ALONE = Rank(0, 1, torch.device("cpu"))


def trained(run_dir: Path, **overrides: Any) -> dict[str, Any]:
    """The summary of a run in this process."""
    return train_plan(digits_plan(run_dir, **overrides))


def train_plan(plan: Plan) -> dict[str, Any]:
    """The summary of a run in this process."""
    quiet()
    return train(plan, RunDir(Path(plan.run_dir)), ALONE, Signals(), started=time.time())


def journal(run_dir: Path) -> list[Point]:
    return read_points(RunDir(run_dir).journal)[0]


def last_value(run_dir: Path, name: str) -> float:
    return [point.metrics[name] for point in journal(run_dir) if name in point.metrics][-1]


class OwnModule(pl.LightningModule):
    """A user's module: logs by itself, leaves the optimizer to the configuration."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/own", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/own", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean())


OWN_MODULE = {"_target_": f"{__name__}.OwnModule"}


class OwnData(pl.LightningDataModule):
    """A user's data module that asks for everything by name."""

    def __init__(self, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def train_dataloader(self) -> Any:
        """Four batches of noise."""
        inputs = torch.randn(4 * self.batch_size, 1, 8, 8, generator=torch.Generator().manual_seed(self.seed))
        samples = TensorDataset(inputs, torch.arange(len(inputs)) % 10)
        return DataLoader(samples, batch_size=self.batch_size, num_workers=self.num_workers)

    val_dataloader = test_dataloader = train_dataloader


def with_own_data(run_dir: Path, **overrides: Any) -> Plan:
    """A plan whose data set says nothing of itself."""
    data = {"_target_": f"{__name__}.OwnData", "global_batch_size": 16, "num_workers": 0}
    model = {"_target_": "hpcexp.models.mlp.MLP", "hidden": [8], "in_shape": [1, 8, 8], "num_classes": 10}
    return replace(digits_plan(run_dir, data=data, model=model, **overrides), data=None, steps=None)


def values_of(run_dir: Path, name: str) -> list[float]:
    return [point.metrics[name] for point in journal(run_dir) if name in point.metrics]


def heavy(run_dir: Path, **overrides: Any) -> Plan:
    """A plan made without the facts of its Source."""
    return replace(digits_plan(run_dir, **overrides), data=None, steps=None)
