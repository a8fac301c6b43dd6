"""What a user's LightningModule decides itself is not accepted, not frozen and not signed as a setting."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_conf, write_module

from hpcexp.compose.composer import Composed
from hpcexp.compose.sources import packaged_conf
from hpcexp.errors import ConfigError
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.tracking.mlflow.description import params

Planned = Callable[..., Plan]

MODULES = """
from lightning import LightningModule
class Leaves(LightningModule):
    def training_step(self, batch, batch_idx): ...
class Decides(Leaves):
    def configure_optimizers(self): ...
class Inherits(Decides): ...
class Gan(Decides):
    def __init__(self, **arguments):
        super().__init__()
        self.automatic_optimization = False
"""


@pytest.fixture
def planned(compose: Callable[..., Composed], project: Path) -> Planned:
    """The plan of a module by its name and of overrides, in the project."""
    sys.path.insert(0, str(project))
    write_module(project, "unused_modules", MODULES)

    def plan(module: str, *overrides: str) -> Plan:
        given = (f"model={{_target_: unused_modules.{module}}}", *overrides)
        return prepare(compose(*given), project, ["hpcexp", "train", *given])

    return plan


@pytest.mark.parametrize("module", ["Decides", "Inherits"])
@pytest.mark.parametrize("asked", ["optimizer.lr=0.1", "optimizer=sgd", "scheduler=step", "scheduler.warmup=0.2"])
def test_an_optimizer_that_the_module_does_not_use_is_refused(planned: Planned, module: str, asked: str) -> None:
    """With the method that decides in its place, also where that is inherited."""
    with pytest.raises(ConfigError) as caught:
        planned(module, asked)
    [problem] = caught.value.problems
    assert problem.startswith(f"{asked}: unused_modules.{module} does not read it: its own configure_optimizers")


@pytest.mark.parametrize("module", ["Leaves", "Decides"])
@pytest.mark.parametrize(
    "asked", ["task.loss.label_smoothing=0.2", "task.metrics=[acc]", "+data.augment={_target_: x}"]
)
def test_what_the_steps_of_a_module_compute_is_refused(planned: Planned, module: str, asked: str) -> None:
    """Loss, metrics and augmentation are applied by hpcexp's own module only."""
    with pytest.raises(ConfigError) as caught:
        planned(module, asked)
    assert any(f"{asked}: unused_modules.{module} does not read it" in problem for problem in caught.value.problems)


def test_what_is_not_used_is_not_frozen_recorded_or_signed(planned: Planned) -> None:
    """Groups that were taken out make the same run; the monitor of the task stays."""
    plan = planned("Decides")
    assert [{}] * 3 == [plan.config[section] for section in ("optimizer", "scheduler", "task")]
    assert {"optimizer", "scheduler", "task"}.isdisjoint(plan.choices)
    assert not [name for name in params(plan) if name.startswith(("optimizer", "scheduler", "task"))]
    assert plan.signature == planned("Decides", "~optimizer", "~scheduler").signature
    assert "val/acc" == plan.config["trainer"]["monitor"]


def test_a_module_without_its_own_optimizer_obeys_the_configuration(planned: Planned) -> None:
    """It is another run with another rate."""
    plan = planned("Leaves", "optimizer=sgd", "optimizer.lr=0.5")
    assert (0.5, "sgd") == (plan.config["optimizer"]["lr"], plan.choices["optimizer"])
    assert plan.signature != planned("Leaves", "optimizer=sgd").signature


def test_files_of_the_project_that_ask_for_what_is_not_used_are_named(planned: Planned, project: Path) -> None:
    """An experiment asks; the project's own option of a group is a default."""
    experiment = """
        # @package _global_
        defaults:
          - override /optimizer: mine
        name: asks
        scheduler:
          warmup: 0.5
        """
    option = "_target_: torch.optim.SGD\nlr: 0.25\n"
    write_conf(project, {"experiment/asks.yaml": experiment, "optimizer/mine.yaml": option})
    with pytest.raises(ConfigError) as caught:
        planned("Decides", "experiment=asks")
    firsts = [problem.splitlines()[0] for problem in caught.value.problems]
    assert [
        "optimizer=mine (conf/experiment/asks.yaml): unused_modules.Decides does not read it: "
        "its own configure_optimizers decides.",
        "scheduler.warmup=0.5 (conf/experiment/asks.yaml): unused_modules.Decides does not read it: "
        "its own configure_optimizers decides.",
    ] == firsts
    assert 0.25 == planned("Leaves", "experiment=asks").config["optimizer"]["lr"]
    write_conf(project, {"optimizer/adamw.yaml": option})
    assert {} == planned("Decides").config["optimizer"]


def test_the_primary_config_of_the_project_asks_for_what_it_sets(planned: Planned, project: Path) -> None:
    """Which options of groups it chooses is a default."""
    primary = (packaged_conf() / "config.yaml").read_text()
    write_conf(project, {"config.yaml": primary})
    assert {} == planned("Decides").config["optimizer"]
    write_conf(project, {"config.yaml": f"{primary}\noptimizer:\n  lr: 0.2\n"})
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0\.2 \(conf/config\.yaml\): unused_modules.Decides"):
        planned("Decides")
    assert 0.2 == planned("Leaves").config["optimizer"]["lr"]


@pytest.mark.parametrize(
    ("asked", "fix"),
    [("trainer.gradient_clip_val=1", "=null"), ("trainer.accumulate_grad_batches=2", "=1")],
)
def test_manual_optimization_takes_no_clipping_or_accumulation(planned: Planned, asked: str, fix: str) -> None:
    """Lightning would refuse it when training starts."""
    with pytest.raises(ConfigError, match=rf"unused_modules\.Gan steps its optimizers itself(.|\n)*{fix}"):
        planned("Gan", asked)
    assert planned("Decides", asked)
