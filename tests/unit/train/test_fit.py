"""Training in this process: what a job does, less its process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitting import journal, last_value, train_plan, trained
from torch import nn
from training_plans import digits_plan

from hpcexp.errors import ConfigError
from hpcexp.plan import save_plan
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint, weights_digest
from hpcexp.train.inference import evaluate, load_trained
from hpcexp.train.tasks.classification import Classification
from hpcexp.train.tasks.evaluation import Evaluation
from hpcexp.train.tasks.regression import Regression


def test_a_run_repeats_bit_for_bit(tmp_path: Path) -> None:
    """Seeds fix initial weights, order and dropout."""
    first, again = (trained(tmp_path / name, model__dropout=0.5)["weights_sha256"] for name in "ab")
    assert first == again


def test_accumulated_batches_make_the_same_steps(tmp_path: Path) -> None:
    """The global batch stays what the configuration says."""
    trained(tmp_path / "one")
    trained(tmp_path / "four", trainer__accumulate_grad_batches=4)
    for a, b in zip(journal(tmp_path / "one"), journal(tmp_path / "four"), strict=True):
        assert (a.step, a.metrics) == (b.step, pytest.approx(b.metrics, rel=1e-4))


def test_map_and_resident_loaders_train_alike(tmp_path: Path) -> None:
    """Neither the order of samples nor dropout depends on how they are read."""
    kinds = ("resident", "map")
    sums = [trained(tmp_path / k, data__loader=k, model__dropout=0.5)["weights_sha256"] for k in kinds]
    assert sums[0] == sums[1]


def test_best_and_last_are_plain_data(tmp_path: Path) -> None:
    """Best has the weights the summary speaks of; last goes on from there."""
    summary = trained(tmp_path, trainer__ema_decay=0.9, trainer__patience=5)
    best, last = read_checkpoint(RunDir(tmp_path).best), read_checkpoint(RunDir(tmp_path).last)
    assert summary["best"]["value"] == best["value"]
    assert {"layers.1.weight", "layers.1.bias"} <= {name.removeprefix("model.") for name in best["state_dict"]}
    assert (38, 1) == (last["global_step"], len(last["optimizer_states"]))


def test_patience_ends_training_early(tmp_path: Path) -> None:
    """Where nothing gets better."""
    assert trained(tmp_path, trainer__max_epochs=20, trainer__patience=2, optimizer__lr=1e-12)["epochs"] < 20


def test_unknown_monitor_is_named_before_the_first_step(tmp_path: Path) -> None:
    """With the names there are."""
    with pytest.raises(ConfigError, match=r"trainer.monitor=val/accc .*did you mean 'val/acc'"):
        trained(tmp_path, trainer__monitor="val/accc")
    assert journal(tmp_path) == []


def test_divergence_is_reported(tmp_path: Path) -> None:
    """Not hidden, and no reason to fail."""
    assert trained(tmp_path, optimizer={"_target_": "torch.optim.SGD", "lr": 1e30})["diverged"]


def test_overfitting_sees_the_same_few_batches(tmp_path: Path) -> None:
    """In training and in validation."""
    fast = {"trainer__overfit_batches": 1, "trainer__max_epochs": 40, "optimizer__lr": 0.03}
    trained(tmp_path, **fast, trainer__monitor="train/loss", trainer__mode="min")
    assert last_value(tmp_path, "val/acc") == 1.0


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_train(tmp_path: Path, precision: str) -> None:
    """Every format the CPU has."""
    assert trained(tmp_path, trainer__precision=precision)["test"]["test/acc"] > 0.6


def test_sums_are_exact_over_unequal_batches() -> None:
    """The mean is over samples, not over batches."""
    outputs, targets = torch.randn(10, 3), torch.randint(3, (10,))
    task = Classification({"_target_": "torch.nn.CrossEntropyLoss"}, ["acc", "top5"])
    task.modules(None)
    evaluation = Evaluation(task.metrics(), torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 10)):
        evaluation.update(task.evaluate(nn.Identity(), (outputs[part], targets[part])))
    means = evaluation.values()
    assert nn.functional.cross_entropy(outputs, targets).item() == pytest.approx(means["loss"])
    assert (outputs.argmax(1) == targets).float().mean().item() == pytest.approx(means["acc"])
    assert means["top5"] == 1.0


@pytest.mark.parametrize(
    ("limits", "step", "epoch"),
    [
        ({"val_every_epochs": 2, "max_epochs": 3}, 57, 2),
        ({"max_epochs": 30, "max_steps": 5}, 5, 0),
        ({"val_every_epochs": 9, "max_epochs": 2}, 38, 1),
    ],
)
def test_the_end_of_training_is_always_validated(tmp_path: Path, limits: dict[str, int], step: int, epoch: int) -> None:
    """Once, with the average of weights, so that there is a best checkpoint that the test uses."""
    summary = trained(tmp_path, trainer__ema_decay=0.5, **{f"trainer__{k}": v for k, v in limits.items()})
    validated = [(p.step, p.metrics["epoch"]) for p in journal(tmp_path) if "val/acc" in p.metrics]
    assert (step, epoch) == validated[-1]
    assert len(validated) == len(set(validated))
    best, last = read_checkpoint(RunDir(tmp_path).best), read_checkpoint(RunDir(tmp_path).last)
    assert summary["weights_sha256"] == weights_digest(best["state_dict"])
    assert summary["best"]["epoch"] <= epoch
    assert summary["steps"] == last["global_step"] == step
    if best["global_step"] == step:
        average = last["callbacks"]["Ema"]["average"]
        assert all(torch.equal(a, b) for a, b in zip(average, best["state_dict"].values(), strict=True))


def test_the_summary_digests_the_best_weights_without_a_test(tmp_path: Path) -> None:
    """Not the last ones."""
    plan = digits_plan(tmp_path, trainer__ema_decay=0.9)
    assert plan.data is not None
    summary = train_plan(replace(plan, data=replace(plan.data, num_test=0)))
    assert summary["weights_sha256"] == weights_digest(read_checkpoint(RunDir(tmp_path).best)["state_dict"])


def test_sums_of_half_precision_are_exact() -> None:
    """Eight bits a value, not eight bits a sum."""
    outputs = torch.randn(1000, 3).bfloat16()
    targets = torch.randn(1000, 3).bfloat16()
    task = Regression({"_target_": "torch.nn.MSELoss"}, ["mse", "mae"])
    task.modules(None)
    evaluation = Evaluation(task.metrics(), torch.device("cpu"))
    evaluation.update(task.evaluate(nn.Identity(), (outputs, targets)))
    means, errors = evaluation.values(), outputs.double() - targets.double()
    assert means["loss"] == nn.functional.mse_loss(outputs, targets).item()
    assert means["mse"] == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert means["mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-5)


def test_a_trained_model_is_neither_compiled_nor_profiled(tmp_path: Path) -> None:
    """Whatever its training was."""
    trained(tmp_path)
    save_plan(digits_plan(tmp_path, trainer__compile=True, trainer__profiler="simple"), RunDir(tmp_path).plan)
    model = load_trained(RunDir(tmp_path))
    assert model.network._compiled_call_impl is None
    assert evaluate(model, "val")["val/acc"] > 0.5
    assert not list(tmp_path.glob("*profile*"))


def test_limits_are_global_batches(tmp_path: Path) -> None:
    """Each is a step, however many batches it is made of."""
    summary = trained(tmp_path, trainer__limit_train_batches=3, trainer__accumulate_grad_batches=2)
    assert summary["steps"] == 6


def test_a_summary_without_numbers_is_json_all_the_same(tmp_path: Path) -> None:
    """A best value that is none is null, and the run says that it diverged."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 1e30}
    trained(tmp_path, optimizer=sgd, trainer__monitor="val/loss", trainer__mode="min")
    summary = json.loads(RunDir(tmp_path).summary.read_text(), parse_constant=pytest.fail)
    assert (None, True) == (summary["best"]["value"], summary["diverged"])


def test_what_the_trainer_refuses_is_said_of_its_extra_arguments(tmp_path: Path) -> None:
    """Before the first step, without Lightning's traceback."""
    with pytest.raises(ConfigError, match=r"refuses trainer.extra.gradient_clip_algorithm=loud: (.|\n)*Fix:"):
        trained(tmp_path, trainer__extra={"gradient_clip_algorithm": "loud"})
