"""What is recorded of users' LightningModules: every step, on one axis, as they log it."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy, MeanMetric, MetricCollection
from training_plans import digits_plan, run_job

from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.engine.fit import train
from hpcexp.train.engine.interrupts import Interrupted, Signals
from hpcexp.train.runtime.log_filters import quiet
from hpcexp.train.runtime.rank import Rank

STEPS = 19
"""Of an epoch of the digits in batches of 64."""


class Later(Signals):
    """A signal that comes in the middle of training: after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def install(self) -> None:
        """Nothing: this process keeps its handlers."""

    @property
    def received(self) -> int | None:  # type: ignore[override]
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else None

    @received.setter
    def received(self, value: int | None) -> None: ...


class Base(pl.LightningModule):
    """A linear classifier of the digits."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
        self.seen: list[float] = []

    def loss_of(self, batch: Any) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.seen.append(loss.item())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/own", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Keeps(pl.Callback):
    """Shows the tests the module and the metrics that callbacks see."""

    module: Any = None
    metrics: list[dict[str, float]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Keeps.module, Keeps.metrics = pl_module, []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        Keeps.metrics.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def run(directory: Path, module: type, signals: Signals | None = None, **overrides: Any) -> dict[str, Any]:
    """The summary of a run of `module` in this process."""
    quiet()
    settings = {
        "model": {"_target_": f"{module.__module__}.{module.__name__}"},
        "trainer__monitor": "val/own",
        "callbacks": {"keeps": {"_target_": f"{__name__}.Keeps"}},
        **overrides,
    }
    data = settings.pop("data", None)
    plan = digits_plan(directory, **settings)
    if data is not None:
        plan = replace(plan, config={**plan.config, "data": data}, batch=None, data=None, steps=None)
    alone = Rank(0, 1, torch.device("cpu"))
    return train(plan, RunDir(directory), alone, signals or Signals(), started=time.time())


def series(directory: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric in the order in which they were written."""
    return [(p.step, p.metrics[name]) for p in read_points(RunDir(directory).journal)[0] if name in p.metrics]


class Dictionary(Base):
    """Returns a mapping, and logs at some steps only."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss_of(batch)
        self.log("train/double", 2 * loss)
        self.log("train/number", batch_idx, prog_bar=True)
        if batch_idx % 3 == 0:
            self.log_dict({"some/third": loss, "some/constant": 1.5})
        return {"loss": loss, "more": batch_idx}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("grad", self.net[1].weight.grad.norm())


@pytest.mark.parametrize("module", [Base, Dictionary])
@pytest.mark.parametrize("every", [1, 50])
def test_every_step_has_its_loss_and_rate(tmp_path: Path, module: type, every: int) -> None:
    """From 1, whatever `log_every_n_steps`; the rate is that of the step, not the one that its schedule sets after."""
    run(tmp_path, module, trainer__log_every_n_steps=every)
    steps = range(1, 2 * STEPS + 1)
    assert [(s, pytest.approx(x)) for s, x in zip(steps, Keeps.module.seen, strict=True)] == series(
        tmp_path, "train/loss"
    )
    assert [(s, pytest.approx(0.5 * 0.9 ** (s - 1))) for s in steps] == series(tmp_path, "train/lr")


def test_every_value_that_a_step_logs_is_recorded_at_that_step_alone(tmp_path: Path) -> None:
    """By `log`, `log_dict` and in hooks; a value that is not logged in a step is not repeated in it."""
    run(tmp_path, Dictionary)
    seen, thirds = Keeps.module.seen, [e * STEPS + i for e in range(2) for i in range(0, STEPS, 3)]
    assert [(i + 1, pytest.approx(2 * x)) for i, x in enumerate(seen)] == series(tmp_path, "train/double")
    assert [(i + 1, float(i % STEPS)) for i in range(2 * STEPS)] == series(tmp_path, "train/number")
    assert [(i + 1, pytest.approx(seen[i])) for i in thirds] == series(tmp_path, "some/third")
    assert [(i + 1, 1.5) for i in thirds] == series(tmp_path, "some/constant")
    assert list(range(1, 2 * STEPS + 1)) == [step for step, _ in series(tmp_path, "grad")]


def test_callbacks_see_the_newest_values(tmp_path: Path) -> None:
    """At the end of each batch, as with Lightning's own records."""
    run(tmp_path, Dictionary)
    assert [pytest.approx(2 * x) for x in Keeps.module.seen] == [m["train/double"] for m in Keeps.metrics]


class Skips(Base):
    """Trains on every other batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("index", float(batch_idx))
        return self.loss_of(batch) if batch_idx % 2 == 0 else None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_skipped_step_is_a_step_without_a_loss(tmp_path: Path) -> None:
    """What it logs has its step, and later steps keep their numbers."""
    summary = run(tmp_path, Skips)
    trained = [e * STEPS + i + 1 for e in range(2) for i in range(0, STEPS, 2)]
    assert trained == [step for step, _ in series(tmp_path, "train/loss")]
    assert list(range(1, 2 * STEPS + 1)) == [step for step, _ in series(tmp_path, "index")]
    assert 2 * STEPS == summary["steps"]


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """`train/loss` is their mean."""
    run(tmp_path, Base, trainer__accumulate_grad_batches=4)
    seen = Keeps.module.seen
    means = [sum(seen[i : i + 4]) / 4 for i in range(0, len(seen), 4)]
    assert [(i, pytest.approx(mean)) for i, mean in enumerate(means, 1)] == series(tmp_path, "train/loss")


class Diverges(Base):
    """Its loss is not a number in the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch) * (math.nan if self.current_epoch else 1.0)


def test_divergence_of_a_users_module_is_reported(tmp_path: Path) -> None:
    """In the summary and at each step."""
    assert run(tmp_path, Diverges)["diverged"]
    assert [step > STEPS for step, _ in series(tmp_path, "train/loss")] == [
        math.isnan(loss) for _, loss in series(tmp_path, "train/loss")
    ]
    assert not run(tmp_path / "other", Base)["diverged"]


class Gan(Base):
    """Two optimizers that it steps itself, the second of them twice a batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.automatic_optimization = False
        self.other = nn.Linear(64, 1)
        self.ends = nn.Parameter(torch.zeros(()), requires_grad=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()
        inputs = batch[0].flatten(1)
        loss = self.loss_of(batch) + torch.rand(())
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        for _ in range(2):
            second.zero_grad()
            other = (self.other(inputs) - 1).square().mean()
            self.manual_backward(other)
            second.step()
        self.log_dict({"g": loss, "d": other})
        return {"loss": loss}

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends += 1
        self.log("ends", self.ends)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=0.01), torch.optim.SGD(self.other.parameters(), lr=0.02)


def test_several_optimizers_have_one_axis_also_after_a_resume(tmp_path: Path) -> None:
    """Batches, not calls of optimizers: a run that is interrupted has each step once, and ends in the same bits.

    The hooks of the interrupted step have run, and what they logged is there.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    summary = run(whole, Gan)
    with pytest.raises(Interrupted):
        run(parts, Gan, Later(7))
    with pytest.raises(Interrupted):
        run(parts, Gan, Later(20))
    assert 29 == read_checkpoint(RunDir(parts).last)["steps"]["steps"]
    assert summary["steps"] == 2 * STEPS == run(parts, Gan)["steps"]
    for name in ("train/loss", "train/lr/0", "train/lr/1", "g", "d", "ends"):
        assert list(range(1, 2 * STEPS + 1)) == [step for step, _ in series(parts, name)], name
        assert series(whole, name) == series(parts, name), name
    assert series(whole, "val/own") == series(parts, "val/own")
    ends = [read_checkpoint(RunDir(path).last)["state_dict"] for path in (whole, parts)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert {0.01} == {rate for _, rate in series(parts, "train/lr/0")}


class Levels(Base):
    """Logs at every level that there is."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.mean = MeanMetric()
        self.scores = MetricCollection({"acc": Accuracy("multiclass", num_classes=num_classes)}, prefix="c/")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss_of(batch)
        self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("highest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.mean(loss)
        self.log("object", self.mean, on_step=True, on_epoch=True)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.scores(self.net(batch[0]), batch[1])
        self.log_dict(self.scores, on_step=False, on_epoch=True)
        self.log("hidden", loss, logger=False)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("at_the_end", float(self.current_epoch))


def test_steps_and_epochs_are_recorded_under_lightnings_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The mean that a module logs as `train/loss` is not mixed into the steps' losses; that is said once."""
    run(tmp_path, Levels)
    seen = Keeps.module.seen
    steps = [(i, pytest.approx(x)) for i, x in enumerate(seen, 1)]
    assert steps == series(tmp_path, "train/loss") == series(tmp_path, "both_step") == series(tmp_path, "object_step")
    epochs = [(STEPS * (e + 1), seen[STEPS * e : STEPS * (e + 1)]) for e in range(2)]
    means = [(step, pytest.approx(sum(losses) / STEPS)) for step, losses in epochs]
    for name in ("both_epoch", "object_epoch", "train/loss_epoch"):
        assert means == series(tmp_path, name), name
    assert [(step, pytest.approx(max(losses))) for step, losses in epochs] == series(tmp_path, "highest")
    assert [STEPS, 2 * STEPS] == [step for step, _ in series(tmp_path, "c/acc")]
    assert [(STEPS, 0.0), (2 * STEPS, 1.0)] == series(tmp_path, "at_the_end")
    assert [] == series(tmp_path, "hidden")
    assert "hidden" in Keeps.metrics[-1]
    assert 1 == capfd.readouterr().out.count("recorded as train/loss_epoch")


def test_what_an_epoch_accumulates_survives_an_interruption(tmp_path: Path) -> None:
    """Means, extremes and the states of metrics, of an epoch that was interrupted in its middle, to the bit."""
    run(tmp_path / "whole", Levels)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", Levels, Later(7))
    run(tmp_path / "parts", Levels)
    for name in ("both_epoch", "object_epoch", "train/loss_epoch", "highest", "c/acc", "both_step", "object_step"):
        assert series(tmp_path / "whole", name) == series(tmp_path / "parts", name), name


class OwnLoss(Base):
    """Logs another number as the training loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss_of(batch)
        self.log("train/loss", loss + 100)
        return loss


def test_a_loss_that_the_module_logs_itself_takes_precedence(tmp_path: Path) -> None:
    """There is one value a step: the module's."""
    run(tmp_path, OwnLoss)
    assert [(i, pytest.approx(x + 100)) for i, x in enumerate(Keeps.module.seen, 1)] == series(tmp_path, "train/loss")


def test_the_loss_of_a_users_module_can_be_monitored(tmp_path: Path) -> None:
    """As the mean since the last validation."""
    summary = run(tmp_path, Base, trainer__monitor="train/loss", trainer__mode="min")
    assert pytest.approx(sum(Keeps.module.seen[STEPS:]) / STEPS) == summary["best"]["value"]


class Sets(Base):
    """Two validation sets, logged into their own and into one name, and metrics of the logger."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/each", float(dataloader_idx))
        self.log("val/own", 1.0, add_dataloader_idx=False) if dataloader_idx else None

    def on_train_batch_end(self, *args: Any) -> None:
        self.logger.log_metrics({"direct": 3.0})


class TwoSets(pl.LightningDataModule):
    """Training digits of noise, and two validation sets."""

    def train_dataloader(self) -> Any:
        inputs = torch.randn(128, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, torch.arange(128) % 10), batch_size=32)

    def val_dataloader(self) -> Any:
        return [self.train_dataloader(), self.train_dataloader()]


def test_several_validation_sets_and_the_logger_itself(tmp_path: Path) -> None:
    """Each set has its name; what goes to the logger without a step has the running one."""
    run(tmp_path, Sets, data={"_target_": f"{__name__}.TwoSets"})
    assert [(4, 0.0), (8, 0.0)] == series(tmp_path, "val/each/dataloader_idx_0")
    assert [(4, 1.0), (8, 1.0)] == series(tmp_path, "val/each/dataloader_idx_1")
    assert [(4, 1.0), (8, 1.0)] == series(tmp_path, "val/own")
    assert [(step, 3.0) for step in range(1, 9)] == series(tmp_path, "direct")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own can import this file."""
    directories = (Path(__file__).parent, Path(__file__).parents[2], os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, directories)))


class Synced(Base):
    """Logs what differs from rank to rank, and its mean over the ranks."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("mine", float(self.global_rank))
        self.log("mean", torch.tensor(float(self.global_rank)), sync_dist=True)
        self.log("averaged", torch.tensor(float(self.global_rank)), on_step=False, on_epoch=True, sync_dist=True)
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/own", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean(), sync_dist=True)


@pytest.mark.slow
def test_two_ranks_record_the_losses_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train/loss` is the mean over ranks; `sync_dist` is obeyed; what is not synced is rank 0's."""
    monkeypatch.setenv(
        "PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"
    )
    settings: dict[str, Any] = {"model": {"_target_": f"{__name__}.Synced"}, "trainer__monitor": "val/own"}
    for ranks in (1, 2):
        jobs = run_job(digits_plan(tmp_path / str(ranks), ranks, **settings))
        assert [0] * ranks == [status for status, _ in jobs], jobs[0][1]
    one, two = (series(tmp_path / name, "train/loss") for name in ("1", "2"))
    assert [(step, pytest.approx(loss, rel=1e-5)) for step, loss in one] == two
    assert {0.0} == {value for _, value in series(tmp_path / "2", "mine")}
    assert {0.5} == {value for _, value in series(tmp_path / "2", "mean")}
    assert [(STEPS, 0.5), (2 * STEPS, 0.5)] == series(tmp_path / "2", "averaged")


class Disagrees(Base):
    """Its ranks measure different things, and its schedule and the best weights look at them."""

    def on_train_start(self) -> None:
        warnings.filterwarnings("ignore", "It is recommended to use")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/own", float(self.global_rank * self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/own"}}

    def on_train_end(self) -> None:
        weights = float(self.net[1].weight.detach().sum())
        print(f"rank {self.global_rank}: {self.optimizers().param_groups[0]['lr']} {weights}", flush=True)


@pytest.mark.slow
def test_ranks_that_disagree_follow_rank_0(tmp_path: Path, elsewhere: None) -> None:
    """A schedule that each rank steps by its own value would train them apart."""
    model = {"_target_": f"{__name__}.Disagrees"}
    plan = digits_plan(tmp_path, 2, model=model, trainer__monitor="val/own", trainer__max_epochs=4)
    jobs = run_job(plan)
    assert [0, 0] == [status for status, _ in jobs], jobs[0][1]
    ends = [line.partition(": ")[2] for _, output in jobs for line in output.splitlines() if line.startswith("rank ")]
    assert 2 == len(ends)
    assert 1 == len(set(ends))
    assert float(ends[0].split()[0]) < 0.5
