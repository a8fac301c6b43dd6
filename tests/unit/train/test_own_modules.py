"""A user's own module, data module and callbacks in a training, and what planning could not ask of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fitting import (
    ALONE,
    CONF,
    OWN_MODULE,
    OwnData,
    heavy,
    journal,
    last_value,
    train_plan,
    trained,
    values_of,
    with_own_data,
)
from training_plans import digits_plan

from hpcexp.errors import ConfigError
from hpcexp.train.engine.builders import make_data, with_facts


def test_a_users_module_is_used_as_it_is(tmp_path: Path) -> None:
    """What it logs is journalled, what it monitors decides, and the optimizer comes from the configuration."""
    summary = trained(tmp_path, model=OWN_MODULE, trainer__monitor="val/own", trainer__log_every_n_steps=1)
    assert summary["best"]["value"] == pytest.approx(
        max(p.metrics["val/own"] for p in journal(tmp_path) if "val/own" in p.metrics)
    )
    assert last_value(tmp_path, "train/own") < 2.0


def test_a_users_callbacks_run(tmp_path: Path) -> None:
    """Also those that write checkpoints, and monitor ours."""
    callback = {
        "_target_": "pytorch_lightning.callbacks.ModelCheckpoint",
        "monitor": "val/acc",
        "dirpath": str(tmp_path / "own"),
    }
    trained(tmp_path, callbacks={"keep": callback})
    assert len(list((tmp_path / "own").iterdir())) == 1


def test_without_validation_samples_the_end_is_the_best(tmp_path: Path) -> None:
    """Judged by the training loss, which the callbacks see too."""
    scheduler = yaml.safe_load((CONF / "scheduler" / "plateau.yaml").read_text())
    plan = with_own_data(tmp_path, trainer__monitor="train/loss", trainer__mode="min", scheduler=scheduler)
    plan.config["data"]["_target_"] = f"{__name__}.NoValidation"
    summary = train_plan(plan)
    assert (8, 1) == (summary["best"]["global_step"], summary["best"]["epoch"])
    assert summary["best"]["value"] == pytest.approx(sum(values_of(tmp_path, "train/loss")[4:]) / 4)


class NoValidation(OwnData):
    """Nothing but training samples."""

    def val_dataloader(self) -> Any:
        """Empty."""
        return []


def test_a_job_learns_what_planning_could_not_ask(tmp_path: Path) -> None:
    """Facts and steps, as if planning had known them."""
    known, plan = digits_plan(tmp_path, trainer__max_steps=21), heavy(tmp_path, trainer__max_steps=21)
    filled = with_facts(plan, make_data(plan, ALONE))
    assert (known.data, known.steps) == (filled.data, filled.steps)


def test_a_job_says_what_planning_would_have_said(tmp_path: Path) -> None:
    """Epochs without a step, metrics of another task: all at once."""
    plan = heavy(tmp_path, data__global_batch_size=5000, task__metrics=["mse"], trainer__monitor="val/mse")
    with pytest.raises(ConfigError) as caught:
        train_plan(plan)
    assert ["data.global_batch_size=5000", "task.metrics=mse"] == [
        problem.partition(",")[0].partition(":")[0] for problem in caught.value.problems
    ]


def test_a_source_needs_a_batch_size(tmp_path: Path) -> None:
    """It is not guessed."""
    with pytest.raises(ConfigError, match=r"data.global_batch_size is not set(.|\n)*Fix:"):
        train_plan(replace(heavy(tmp_path), batch=None))


def test_a_users_data_module_gets_what_it_asks_for(tmp_path: Path) -> None:
    """The rank's batch, the seed, and hpcexp's own keys that the configuration says."""
    plan = with_own_data(tmp_path, seed=7)
    data = make_data(plan, ALONE)
    assert isinstance(data, OwnData)
    assert (16, 7, 0) == (data.batch_size, data.seed, data.num_workers)
    assert train_plan(plan)["steps"] == 8


def test_a_monitor_that_a_users_module_does_not_log_is_named(tmp_path: Path) -> None:
    """With what it has logged."""
    with pytest.raises(ConfigError, match=r"trainer.monitor=val/ovn .*did you mean(.|\n)*has logged: .*val/own"):
        trained(tmp_path, model=OWN_MODULE, trainer__monitor="val/ovn")
