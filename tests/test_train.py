"""Training in this process: what a job does, less its process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from training_plans import digits_plan

from hpcexp.errors import ConfigError
from hpcexp.record.journal import Point, read_points
from hpcexp.rundir import RunDir
from hpcexp.train.checkpoint import read_checkpoint
from hpcexp.train.control import Signals
from hpcexp.train.ema import Ema
from hpcexp.train.experiment import Rank
from hpcexp.train.fit import train
from hpcexp.train.metrics import Sums
from hpcexp.train.quiet import quiet
from hpcexp.train.schedules import constant, onecycle, warmup_cosine

CONF = Path(__file__).parents[1] / "conf"


def trained(run_dir: Path, **overrides: Any) -> dict[str, Any]:
    """The summary of a run in this process."""
    quiet()
    rank = Rank(0, 1, torch.device("cpu"))
    return train(digits_plan(run_dir, **overrides), RunDir(run_dir), rank, Signals(), started=time.time())


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
    """The order of samples does not depend on how they are read."""
    sums = [trained(tmp_path / kind, data__loader=kind)["weights_sha256"] for kind in ("resident", "map")]
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
    sums = Sums(["acc", "top5"], torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 10)):
        sums.update(nn.functional.cross_entropy(outputs[part], targets[part]), outputs[part], targets[part])
    means = sums.means()
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
