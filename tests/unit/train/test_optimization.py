"""Optimizers, schedules, clipping and averages of weights as they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fitting import CONF, OWN_MODULE, OwnModule, journal, train_plan, trained, values_of, with_own_data
from torch import nn
from training_plans import digits_plan

from hpcexp.errors import ConfigError
from hpcexp.plan import Steps
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.optim.ema import Ema
from hpcexp.train.optim.optimizers import optimizers_of
from hpcexp.train.optim.schedules import constant, onecycle, warmup_cosine


def test_the_average_of_weights_is_what_is_kept(tmp_path: Path) -> None:
    """EMA weights are validated and written as best; training goes on with the others."""
    trained(tmp_path, trainer__ema_decay=0.99, trainer__max_epochs=1)
    best, last = read_checkpoint(RunDir(tmp_path).best), read_checkpoint(RunDir(tmp_path).last)
    average = last["callbacks"]["Ema"]["average"]
    assert all(torch.equal(a, b) for a, b in zip(average, best["state_dict"].values(), strict=True))
    assert not torch.equal(average[0], next(iter(last["state_dict"].values())))


@pytest.mark.parametrize(
    "path",
    sorted(CONF.glob("optimizer/*.yaml")) + sorted(CONF.glob("scheduler/*.yaml")),
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_every_optimizer_and_schedule_of_the_configuration_trains(tmp_path: Path, path: Path) -> None:
    """As the files have them."""
    summary = trained(tmp_path, **{path.parent.name: yaml.safe_load(path.read_text()), "trainer__max_epochs": 3})
    assert summary["test"]["test/acc"] > 0.3


def test_schedules_have_the_length_they_are_given() -> None:
    """Rise, top and end."""
    rates = {}
    for schedule in (warmup_cosine, constant, onecycle):
        optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1.0)
        scheduler = schedule(optimizer, 100, warmup=0.1)  # type: ignore[operator]
        rates[schedule.__name__] = []
        for _ in range(100):
            rates[schedule.__name__].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step() if len(rates[schedule.__name__]) < 100 else None
    assert max(rates["warmup_cosine"]) == 1.0
    assert rates["warmup_cosine"][0] == pytest.approx(1 / 11)
    assert rates["warmup_cosine"][-1] < 0.001
    assert rates["constant"][10:] == [1.0] * 90
    assert max(rates["onecycle"]) == pytest.approx(1.0, abs=0.01)


def test_ema_follows_its_formula() -> None:
    """Average ← d·average + (1 − d)·weights, d at most (1 + t)/(10 + t)."""

    class Steps:
        global_step = 0

    module, ema, trainer = nn.Linear(1, 1, bias=False), Ema(0.5), Steps()
    nn.init.constant_(module.weight, 0.0)
    ema.on_train_start(trainer, module)  # type: ignore[arg-type]
    nn.init.constant_(module.weight, 1.0)
    trainer.global_step = 1
    ema.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    assert ema.state_dict()["average"][0].item() == pytest.approx(1 - 2 / 11)


def length(scheduler: Any) -> int:
    """`total_steps` of a cosine."""
    total: int = scheduler["lr_scheduler"]["scheduler"].lr_lambdas[0].keywords["total"]
    return total


def test_a_schedule_by_epochs_is_as_long_as_the_plan(tmp_path: Path) -> None:
    """Not as long as `max_epochs`, where `max_steps` ends training before."""
    plan = digits_plan(tmp_path, scheduler__interval="epoch", trainer__max_epochs=30, trainer__max_steps=38)
    module = OwnModule(10)
    assert Steps(19, 38, 2) == plan.steps
    assert length(optimizers_of(module, plan.settings, plan.steps)) == 2


def test_a_schedule_by_epochs_finds_its_length_where_the_plan_has_none(tmp_path: Path) -> None:
    """Half a cosine over the two epochs that `max_steps` leaves of thirty."""
    cosine = {"_target_": "hpcexp.train.optim.schedules.warmup_cosine", "interval": "epoch"}
    train_plan(with_own_data(tmp_path, scheduler=cosine, trainer__max_epochs=30, trainer__max_steps=8))
    assert [0.003] * 4 + [0.0015] * 4 == pytest.approx(values_of(tmp_path, "train/lr"))


def test_plateau_follows_the_validations(tmp_path: Path) -> None:
    """It moves at every second epoch where only those are validated."""
    node = yaml.safe_load((CONF / "scheduler" / "plateau.yaml").read_text())
    plateau = {"scheduler": {**node, "patience": 0, "threshold": 10.0}, "trainer__max_epochs": 5}
    trained(tmp_path, **plateau, trainer__val_every_epochs=2)
    rates = values_of(tmp_path, "train/lr")
    assert [0.003] * 76 + [0.0003] * 19 == pytest.approx(rates)


def test_plateau_by_steps_is_a_mistake(tmp_path: Path) -> None:
    """Said before the first step."""
    node = yaml.safe_load((CONF / "scheduler" / "plateau.yaml").read_text())
    with pytest.raises(ConfigError, match=r"scheduler.interval=step(.|\n)*Fix: scheduler.interval=epoch"):
        trained(tmp_path, scheduler={**node, "interval": "step"})
    assert journal(tmp_path) == []


@pytest.mark.parametrize("own", [False, True])
def test_gradients_are_clipped_under_bf16_and_a_fused_optimizer(tmp_path: Path, own: bool) -> None:
    """To next to nothing: nothing is learned."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "fused": True}
    overrides = {"optimizer": sgd, "trainer__precision": "bf16-mixed", "trainer__gradient_clip_val": 1e-9}
    if own:
        overrides |= {"model": OWN_MODULE, "trainer__monitor": "val/own"}
    trained(tmp_path, **overrides)
    untrained = read_checkpoint(RunDir(tmp_path).last)["optimizer_states"]
    assert untrained
    weights = [read_checkpoint(RunDir(tmp_path).last)["state_dict"]]
    trained(tmp_path / "still", **{**overrides, "optimizer": {**sgd, "lr": 1e-12}})
    weights.append(read_checkpoint(RunDir(tmp_path / "still").last)["state_dict"])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_optimizers_are_not_fused_where_scaled_gradients_are_clipped(tmp_path: Path) -> None:
    """A fused kernel unscales them after they would be clipped."""
    fused = []
    for clip in (None, 1.0):
        plan = digits_plan(tmp_path, trainer__precision="16-mixed", trainer__gradient_clip_val=clip)
        fused.append(optimizers_of(OwnModule(10), plan.settings, Steps(1, 1, 1))["optimizer"].defaults["fused"])
    assert [True, False] == fused
