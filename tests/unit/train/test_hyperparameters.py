"""`save_hyperparameters()` with anything, and other state that a checkpoint could not hold."""

from __future__ import annotations

import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fitting import OwnData, OwnModule, train_plan, with_own_data
from omegaconf import OmegaConf
from torch import nn
from training_plans import digits_plan

from hpcexp.errors import ConfigError
from hpcexp.plan import save_plan
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.inference import load_trained


class Anything(OwnModule):
    """A module whose arguments are what people have."""

    def __init__(self, num_classes: int, width: int, kind: str, log: str) -> None:
        net, loss, optimizer = nn.Linear(4, 4), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1)
        file, lock, function = sys.__stderr__, threading.Lock(), lambda x: x
        data, nested = OwnData(1, 2, 0), {"lr": 0.5, "deep": {"function": function, "steps": [1, 2]}}
        config = OmegaConf.create({"a": 1, "list": [1, {"b": 2}]})
        super().__init__(num_classes)
        if kind == "all":
            self.save_hyperparameters()
            self.save_hyperparameters({name: value for name, value in locals().items() if name not in ("self", "kind")})
        else:
            self.save_hyperparameters(config)


class Named(OwnData):
    """A data module with hyperparameters of its own."""

    def __init__(self, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.save_hyperparameters({"rate": 16000, "transform": lambda x: x})


class Holding(pl.Callback):
    """A callback with a state that is no plain data."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": 1, "function": lambda: 0}


class HoldingData(OwnData):
    """The same of a data module."""

    def state_dict(self) -> dict[str, Any]:
        return {"lock": object()}


class HoldingOptimizer(torch.optim.SGD):
    """The same of an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "hook": print}


class Drawing(pl.Callback):
    """A callback whose state draws a random number."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": float(torch.rand(()))}


def model_of(run_dir: Path, kind: str) -> dict[str, Any]:
    log = str(run_dir.parent / f"{run_dir.name}.log")
    return {"_target_": f"{__name__}.Anything", "num_classes": 10, "width": 7, "kind": kind, "log": log}


def test_what_is_no_plain_data_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line names it; checkpoints hold the rest, and the run ends and loads."""
    run = RunDir(tmp_path / "run")
    plan = digits_plan(run.path, model=model_of(run.path, "all"), trainer__monitor="val/own")
    save_plan(plan, run.plan)
    train_plan(plan)
    kept = read_checkpoint(run.last)["hyper_parameters"]
    expected = {"num_classes": 10, "width": 7, "nested": {"lr": 0.5, "deep": {"steps": [1, 2]}}}
    assert expected.items() <= kept.items()
    assert kept["config"]["a"] == 1
    lost = ("net", "loss", "optimizer", "file", "lock", "function", "data", "nested.deep.function")
    assert not set(lost) & set(kept)
    [line] = [line for line in capfd.readouterr().err.splitlines() if "save_hyperparameters()" in line]
    assert all(f" {name}," in line or f" {name}." in line for name in lost)
    assert load_trained(run).module.hparams["width"] == 7


def test_a_whole_configuration_may_be_the_hyperparameters(tmp_path: Path) -> None:
    """As plain data."""
    run = RunDir(tmp_path / "run")
    train_plan(digits_plan(run.path, model=model_of(run.path, "config"), trainer__monitor="val/own"))
    assert read_checkpoint(run.last)["hyper_parameters"] == {"a": 1, "list": [1, {"b": 2}]}


def test_a_data_module_may_have_them_too(tmp_path: Path) -> None:
    """By the same rule."""
    run = RunDir(tmp_path / "run")
    plan = with_own_data(run.path)
    plan.config["data"]["_target_"] = f"{__name__}.Named"
    train_plan(plan)
    assert read_checkpoint(run.last)["datamodule_hyper_parameters"] == {"rate": 16000}


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("callback", "callbacks.Holding.function"),
        ("data", "HoldingData.lock"),
        ("optimizer", "optimizer_states[0].hook"),
    ],
)
def test_state_that_cannot_be_saved_is_found_before_the_first_step(tmp_path: Path, where: str, named: str) -> None:
    """Whoever has it."""
    plan = with_own_data(tmp_path / "run")
    node = {"_target_": f"{__name__}.Holding"}
    if where == "callback":
        plan.config["callbacks"] = {"own": node}
    elif where == "data":
        plan.config["data"]["_target_"] = f"{__name__}.HoldingData"
    else:
        plan.config["optimizer"] = {"_target_": f"{__name__}.HoldingOptimizer", "lr": 0.1}
    with pytest.raises(ConfigError, match="no plain data") as refused:
        train_plan(plan)
    assert named in str(refused.value)
    assert not RunDir(tmp_path / "run").journal.read_text()


def test_the_trial_draws_no_random_numbers(tmp_path: Path) -> None:
    """A state that does would otherwise change the training."""
    sums = [
        train_plan(digits_plan(tmp_path / name, model__dropout=0.5, callbacks=callbacks, checkpoint__every_epochs=None))
        for name, callbacks in {"plain": {}, "drawing": {"own": {"_target_": f"{__name__}.Drawing"}}}.items()
    ]
    assert sums[0]["weights_sha256"] == sums[1]["weights_sha256"]
