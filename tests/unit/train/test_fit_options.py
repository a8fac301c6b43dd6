"""Options of a training in this process: validations, limits, weight decay, initial weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fitting import OwnData, journal, train_plan, trained, with_own_data
from torch.utils.data import DataLoader, TensorDataset
from training_plans import digits_plan

from hpcexp.files.atomic import sha256
from hpcexp.plan import InitialWeights, save_plan
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint, weights_digest
from hpcexp.train.inference import evaluate, load_trained


class TwoValidations(OwnData):
    """Two validation sets with names, of different sizes."""

    def val_dataloader(self) -> Any:
        """The first is the usual one."""
        inputs = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        sets = {
            "clean": TensorDataset(inputs, torch.arange(40) % 10),
            "noisy": TensorDataset(-inputs, torch.zeros(40).long()),
        }
        return {name: DataLoader(samples, batch_size=16) for name, samples in sets.items()}

    test_dataloader = val_dataloader


def test_several_validation_loaders_are_reported_by_name(tmp_path: Path) -> None:
    """Each exact, torchmetrics too; the first as the only one would be; any may be monitored."""
    metrics = {"task__metrics": ["acc", "f1"], "trainer__monitor": "val/noisy/f1"}
    plan = with_own_data(tmp_path, **metrics)
    model = {**plan.config["model"], "in_shape": [1, 8, 8]}
    data = {**plan.config["data"], "_target_": f"{__name__}.TwoValidations"}
    task = {**plan.config["task"], "metrics": ["acc", {"metric": "f1", "num_classes": 10}]}
    plan = replace(plan, config={**plan.config, "model": model, "data": data, "task": task})
    train_plan(plan)
    save_plan(plan, RunDir(tmp_path).plan)
    point = next(p.metrics for p in reversed(journal(tmp_path)) if "val/noisy/f1" in p.metrics)
    assert point["val/acc"] == point["val/clean/acc"] != point["val/noisy/acc"]
    assert point["val/f1"] == point["val/clean/f1"] != point["val/noisy/f1"]
    trained_model = load_trained(RunDir(tmp_path))
    assert evaluate(trained_model, "test").keys() >= {"test/noisy/loss", "test/clean/loss", "test/loss"}


def test_metrics_by_target_have_arguments_of_their_own(tmp_path: Path) -> None:
    """Beside a name and a direction, which are no arguments of the class."""
    target = {"_target_": "torchmetrics.classification.MulticlassSpecificity", "name": "spec", "mode": "max"}
    trained(tmp_path, task__metrics=["acc", {**target, "average": "micro"}], trainer__max_epochs=1)
    assert 0 < next(p.metrics["val/spec"] for p in journal(tmp_path) if "val/spec" in p.metrics) < 1


def test_validations_come_every_so_many_steps(tmp_path: Path) -> None:
    """Over the ends of epochs, counted in steps of accumulated batches, and after the last step."""
    trained(
        tmp_path,
        trainer__val_every_steps=7,
        trainer__accumulate_grad_batches=2,
        trainer__max_steps=25,
        trainer__max_epochs=2,
    )
    assert [7, 14, 21, 25] == [p.step for p in journal(tmp_path) if "val/acc" in p.metrics]


def test_limits_may_be_shares(tmp_path: Path) -> None:
    """Of the steps of an epoch, whole ones, and of the evaluation batches."""
    config = {"trainer__limit_train_batches": 0.5, "trainer__limit_eval_batches": 0.5, "data__eval_batch_size": 10}
    summary = trained(tmp_path, **config, trainer__accumulate_grad_batches=2, trainer__max_epochs=1)
    assert 9 == summary["steps"]  # of 19
    seen: list[int] = []
    for share in (1.0, 0.5):
        plan = digits_plan(tmp_path, **config)
        plan.config["trainer"]["limit_eval_batches"] = share
        save_plan(plan, RunDir(tmp_path).plan)
        model = load_trained(RunDir(tmp_path))
        evaluate(model, "val")
        seen.append(int(model.module._evaluations[0]._totals[-1]))
    assert [179, 90] == seen


def test_parameters_without_decay_are_a_group_of_their_own(tmp_path: Path) -> None:
    """A weight decay that takes everything leaves the biases as the gradient makes them."""
    adamw = {"_target_": "torch.optim.SGD", "lr": 1e-12, "weight_decay": 1e12, "no_decay": ["bias"]}
    trained(tmp_path, optimizer=adamw, trainer__max_epochs=1, scheduler={}, trainer__limit_train_batches=1)
    weights = read_checkpoint(RunDir(tmp_path).best)["state_dict"]
    assert all(value.abs().max() < 1e-6 for name, value in weights.items() if name.endswith("weight"))
    assert all(value.abs().max() > 1e-3 for name, value in weights.items() if name.endswith("bias"))


def test_a_run_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    """Its best ones, before the first step; with a rate of next to nothing it ends with them."""
    trained(tmp_path / "first", trainer__max_epochs=1)
    best = RunDir(tmp_path / "first").best
    tiny = {"_target_": "torch.optim.SGD", "lr": 1e-30}
    model = {"_target_": "hpcexp.models.mlp.MLP", "hidden": [32], "init_from": str(best)}
    plan = digits_plan(tmp_path / "second", model=model, optimizer=tiny, trainer__max_epochs=1)
    train_plan(replace(plan, initial_weights=InitialWeights(str(best), sha256(best))))
    first, second = (read_checkpoint(RunDir(tmp_path / name).best)["state_dict"] for name in ("first", "second"))
    assert weights_digest(first) == weights_digest(second)
