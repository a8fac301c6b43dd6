"""Training in this process: what a job does, less its process."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_plans import digits_plan

from hpcexp.errors import ConfigError
from hpcexp.plan import Plan, Steps, save_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Point, read_points
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint, weights_digest
from hpcexp.train.engine.builders import make_data, with_facts
from hpcexp.train.engine.fit import train
from hpcexp.train.engine.interrupts import Signals
from hpcexp.train.inference import evaluate, load_trained
from hpcexp.train.optim.ema import Ema
from hpcexp.train.optim.optimizers import optimizers_of
from hpcexp.train.optim.schedules import constant, onecycle, warmup_cosine
from hpcexp.train.runtime.log_filters import quiet
from hpcexp.train.runtime.rank import Rank
from hpcexp.train.tasks.classification import Classification
from hpcexp.train.tasks.evaluation import Evaluation
from hpcexp.train.tasks.regression import Regression

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


def test_the_average_of_weights_is_what_is_kept(tmp_path: Path) -> None:
    """EMA weights are validated and written as best; training goes on with the others."""
    trained(tmp_path, trainer__ema_decay=0.99, trainer__max_epochs=1)
    best, last = read_checkpoint(RunDir(tmp_path).best), read_checkpoint(RunDir(tmp_path).last)
    average = last["callbacks"]["Ema"]["average"]
    assert all(torch.equal(a, b) for a, b in zip(average, best["state_dict"].values(), strict=True))
    assert not torch.equal(average[0], next(iter(last["state_dict"].values())))


def test_patience_ends_training_early(tmp_path: Path) -> None:
    """Where nothing gets better."""
    assert trained(tmp_path, trainer__max_epochs=20, trainer__patience=2, optimizer__lr=1e-12)["epochs"] < 20


def test_unknown_monitor_is_named_before_the_first_step(tmp_path: Path) -> None:
    """With the names there are."""
    with pytest.raises(ConfigError, match=r"trainer.monitor=val/accc .*did you mean 'val/acc'"):
        trained(tmp_path, trainer__monitor="val/accc")
    assert journal(tmp_path) == []


def test_extra_arguments_of_the_trainer_are_checked(tmp_path: Path) -> None:
    """Those that hpcexp sets itself, and those that there are not."""
    with pytest.raises(ConfigError, match=r"max_tme(.|\n)*'max_time'(.|\n)*max_epochs: hpcexp sets") as caught:
        trained(tmp_path, trainer__extra={"max_tme": "1", "max_epochs": 3})
    assert len(caught.value.problems) == 2


def test_a_users_module_is_used_as_it_is(tmp_path: Path) -> None:
    """What it logs is journalled, what it monitors decides, and the optimizer comes from the configuration."""
    model = {"_target_": f"{__name__}.OwnModule"}
    summary = trained(tmp_path, model=model, trainer__monitor="val/own", trainer__log_every_n_steps=1)
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


@pytest.mark.parametrize(
    "path",
    sorted(CONF.glob("optimizer/*.yaml")) + sorted(CONF.glob("scheduler/*.yaml")),
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_every_optimizer_and_schedule_of_the_configuration_trains(tmp_path: Path, path: Path) -> None:
    """As the files have them."""
    summary = trained(tmp_path, **{path.parent.name: yaml.safe_load(path.read_text()), "trainer__max_epochs": 3})
    assert summary["test"]["test/acc"] > 0.3


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


def heavy(run_dir: Path, **overrides: Any) -> Plan:
    """A plan made without the facts of its Source."""
    return replace(digits_plan(run_dir, **overrides), data=None, steps=None)


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


@pytest.mark.parametrize("own", [False, True])
def test_gradients_are_clipped_under_bf16_and_a_fused_optimizer(tmp_path: Path, own: bool) -> None:
    """To next to nothing: nothing is learned."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "fused": True}
    overrides = {"optimizer": sgd, "trainer__precision": "bf16-mixed", "trainer__gradient_clip_val": 1e-9}
    if own:
        overrides |= {"model": {"_target_": f"{__name__}.OwnModule"}, "trainer__monitor": "val/own"}
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


def test_limits_are_global_batches(tmp_path: Path) -> None:
    """Each is a step, however many batches it is made of."""
    summary = trained(tmp_path, trainer__limit_train_batches=3, trainer__accumulate_grad_batches=2)
    assert summary["steps"] == 6


def test_a_monitor_that_a_users_module_does_not_log_is_named(tmp_path: Path) -> None:
    """With what it has logged."""
    model = {"_target_": f"{__name__}.OwnModule"}
    with pytest.raises(ConfigError, match=r"trainer.monitor=val/ovn .*did you mean(.|\n)*has logged: .*val/own"):
        trained(tmp_path, model=model, trainer__monitor="val/ovn")


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
