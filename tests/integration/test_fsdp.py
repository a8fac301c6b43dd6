"""Fully sharded training: the same as on one device, continued to the bit, and on other numbers of devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
import torch
from helpers import Said, write_module
from test_resume import EXACT, KILLER, flip, result, run_in, values
from torch import nn

from hpcexp.errors import RunError
from hpcexp.launch.resume.checkpoint_transfer import adopt, origin
from hpcexp.models.vit import ViT
from hpcexp.plan import Plan, load_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import is_intact, read_note
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.parallel.fsdp import blocks

TWO = ("hardware=cpu", "hardware.devices=2")
FSDP = ("strategy=fsdp", "strategy.min_params=500")
PLAIN = (
    "model.hidden=[256,128]",
    "data.global_batch_size=128",
    "trainer.limit_train_batches=6",
    "trainer.max_epochs=2",
    "trainer.ema_decay=0.9",
    "trainer.gradient_clip_val=0.5",
    "checkpoint.every_s=null",
    "checkpoint.every_steps=4",
    "launch.progress=none",
    "tracking=off",
)
"""Twelve steps without dropout."""


class Trained(Protocol):
    """Trains in a root of its own."""

    def __call__(self, root: str, *overrides: str, kills: str = "") -> Said: ...


@pytest.fixture
def trained(train: Callable[..., Said], project: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """`hpcexp train` in the project."""

    def call(root: str, *overrides: str, kills: str = "") -> Said:
        monkeypatch.setenv("KILLS", kills)
        return train(*overrides, f"run.root={project / root}")

    return call


@pytest.fixture
def planned(hpcexp: Callable[..., Said], project: Path) -> Callable[..., Plan]:
    """The frozen plan of a run that has not begun."""

    def call(root: str, *overrides: str) -> Plan:
        said = hpcexp("train", *overrides, f"run.root={project / root}", "launch=dry")
        assert 0 == said.status, said.err
        return load_plan(run_in(project / root).plan)

    return call


def near(run: RunDir) -> dict[tuple[str, int], object]:
    """Every value of the journal, to be compared up to rounding."""
    return {(key, step): pytest.approx(value, rel=1e-4, abs=1e-5) for key, step, value in values(run)}


def losses(root: Path) -> list[float]:
    """Training losses of the one run in `root`, step by step."""
    return [value for key, _, value in values(run_in(root)) if key == "train/loss"]


def exactly(run: RunDir) -> dict[tuple[str, int], float]:
    return {(key, step): value for key, step, value in values(run)}


@pytest.mark.parametrize(
    ("min_params", "expected"), [(1_000, ["Block", "Block", "Linear"]), (5_000, ["Block", "Block"]), (10**9, [])]
)
def test_blocks_are_what_containers_have_that_is_large_enough(min_params: int, expected: list[str]) -> None:
    """A transformer's layers, not the linear layers in them."""
    model = nn.ModuleDict(
        {"vit": ViT((1, 8, 8), 10, dim=32, depth=2, heads=2), "head": nn.Sequential(nn.Linear(10, 100))}
    )
    assert expected == sorted(type(block).__name__ for block in blocks(model, min_params))


@pytest.mark.slow
def test_two_shards_train_as_one_device_does(trained: Trained, hpcexp: Callable[..., Said], tmp_path: Path) -> None:
    """Weights and optimizer state are spread over the ranks; the best are whole, and of use to every other command."""
    assert 0 == trained("one", *PLAIN, "hardware=cpu").status
    sharded = trained("two", *PLAIN, *TWO, *FSDP)
    assert 0 == sharded.status, sharded.err
    one, two = run_in(tmp_path / "one"), run_in(tmp_path / "two")
    assert near(one) == exactly(two)

    weights = read_checkpoint(two.best)["state_dict"]
    assert {type(weight) for weight in weights.values()} == {torch.Tensor}
    whole = 4 * 4 * sum(weight.numel() for weight in weights.values())  # with Adam's two moments and the average
    parts = [size for name, (size, _) in read_note(two.last).beside.items() if name.endswith(".distcp")]
    assert 2 == len(parts)
    assert all(size < 0.6 * whole for size in parts)

    summary = json.loads(two.summary.read_text())
    tested = hpcexp("test", str(two.path))
    assert f"test/acc   {summary['test']['test/acc']:.4g}" in tested.out
    assert 0 == hpcexp("export", str(two.path)).status


@pytest.mark.slow
def test_killed_and_continued_is_the_same_to_the_bit(trained: Trained, tmp_path: Path) -> None:
    """Also where a shard of the newest checkpoint is damaged, and the one before it is taken."""
    write_module(tmp_path, "killer", KILLER)
    asked = (*EXACT, *TWO, *FSDP, "tracking=off")
    whole = trained("whole", *asked)
    assert 0 == whole.status, whole.err
    kills = ["9 SIGKILL 1", "13 SIGTERM supervisor"]
    for number in range(2):
        assert 0 != trained("runs", *asked, kills=",".join(kills)).status
        run = run_in(tmp_path / "runs")
        if number == 0:
            before = read_note(run.previous)
            assert before is not None
            flip(next(run.checkpoints / name for name in read_note(run.last).beside if "_1_" in name))
            assert not is_intact(run.last)
    last = trained("runs", *asked, kills=",".join(kills))
    assert 0 == last.status, last.err
    assert values(run_in(tmp_path / "whole")) == values(run)
    assert result(run_in(tmp_path / "whole")) == result(run)
    left = sorted(path.name for path in run.checkpoints.iterdir())
    assert ["best.ckpt", "damaged-last.ckpt", "last.ckpt", f"shards-{result(run)['steps']}"] == left


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(TWO, ()), (("hardware=cpu",), TWO)], ids=["2 to 1", "1 to 2"])
def test_a_run_goes_on_with_another_number_of_devices(
    trained: Trained, planned: Callable[..., Plan], tmp_path: Path, first: tuple[str, ...], then: tuple[str, ...]
) -> None:
    """As if it had been trained there from the beginning."""
    write_module(tmp_path, "killer", KILLER)
    asked = (*PLAIN, *FSDP, "callbacks.killer._target_=killer.Killer")
    assert 0 == trained("whole", *asked, *TWO).status
    assert 0 != trained("first", *asked, *first, kills="7 SIGKILL 0").status
    begun = run_in(tmp_path / "first")
    goes_on = (*asked, "hardware=cpu", *then, f"run.resume_from='{begun.path}'")
    plan = planned("then", *goes_on)
    found = origin(plan)
    assert found is not None
    adopt(found, RunDir(Path(plan.run_dir)))
    said = trained("then", *goes_on)
    assert 0 == said.status, said.err
    assert f"Continuing from step {found.step} of 12" in said.out
    assert near(run_in(tmp_path / "whole")) == exactly(run_in(tmp_path / "then"))

    with pytest.raises(RunError, match="is another experiment: more than its devices is different"):
        origin(planned("other", *goes_on, "seed=5"))
    with pytest.raises(RunError, match="there is no run in"):
        origin(planned("none", *asked, "hardware=cpu", "run.resume_from=nowhere"))


@pytest.mark.slow
def test_batch_norm_and_half_precision_are_as_under_ddp(trained: Trained, tmp_path: Path) -> None:
    """Weights of a batch norm stay in float32, and its running means are those of rank 0."""
    asked = [*PLAIN[1:], *TWO, "model=cnn", "model.channels=[8,16]", "trainer.precision=bf16-mixed"]
    assert 0 == trained("ddp", *asked, "strategy=ddp").status
    sharded = trained("fsdp", *asked, *FSDP)
    assert 0 == sharded.status, sharded.err
    assert pytest.approx(losses(tmp_path / "ddp"), rel=0.01) == losses(tmp_path / "fsdp")


OWN = """
import pytorch_lightning as pl
import torch
from torch import nn


class Own(pl.LightningModule):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean(), sync_dist=True)


class Sharded(Own):
    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Disagrees(Sharded):
    def validation_step(self, batch, batch_idx):
        self.log("val/acc", float(self.global_rank if self.current_epoch % 2 else -self.global_rank))
"""


@pytest.mark.slow
def test_a_module_of_the_users_says_itself_how_it_is_sharded(trained: Trained, tmp_path: Path) -> None:
    """One that does not is told what to write."""
    write_module(tmp_path, "sharded_own", OWN)
    asked = [*TWO, *FSDP, *PLAIN[1:], "~model.hidden", "~model.dropout", "~model.activation"]
    without = trained("without", *asked, "model._target_=sharded_own.Own")
    assert 2 == without.status
    assert "Own does not say how it is sharded" in without.err
    assert "configure_model()" in without.err
    said = trained("with", *asked, "model._target_=sharded_own.Sharded")
    assert 0 == said.status, said.err


@pytest.mark.slow
def test_ranks_that_disagree_on_the_monitor_follow_rank_0(trained: Trained, tmp_path: Path) -> None:
    """Each would gather the best weights, which all ranks must do together, after another validation."""
    write_module(tmp_path, "disagreeing_own", OWN)
    asked = [*TWO, *FSDP, *PLAIN[1:], "~model.hidden", "~model.dropout", "~model.activation", "trainer.max_epochs=4"]
    said = trained("disagreeing", *asked, "model._target_=disagreeing_own.Disagrees")
    assert 0 == said.status, said.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.compile=true"], ["trainer.compile=true", "sharded", "Fix: trainer.compile=false"]),
        (["trainer.precision=64-true"], ["trainer.precision=64-true", "32-true, bf16-mixed", "strategy=ddp"]),
        (["strategy.compression=fp16"], ["strategy.compression", "takes no argument", "Valid are: min_params"]),
        (["strategy.min_params=0"], ["strategy.min_params=0", "at least 1"]),
    ],
)
def test_mistakes_are_said_before_anything_starts(
    hpcexp: Callable[..., Said], overrides: list[str], said: list[str]
) -> None:
    """With the setting's name and a way out."""
    answer = hpcexp("plan", *TWO, "strategy=fsdp", *overrides)
    assert 2 == answer.status
    assert [] == [part for part in said if part not in answer.err]


def test_on_one_device_nothing_is_sharded(hpcexp: Callable[..., Said]) -> None:
    """And the plan says so; on two it names what joins them."""
    assert "strategy single" in hpcexp("plan", "hardware=cpu", "strategy=fsdp").out
    assert "strategy fsdp" in hpcexp("plan", *TWO, "strategy=fsdp").out
