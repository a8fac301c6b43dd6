"""Drills: kills that must leave no trace, devices that must not matter, and what is said where they do."""

from __future__ import annotations

import math
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import start
from helpers import Said, ended, write_module

from hpcexp.compare.bitwise import Check, compared
from hpcexp.drill.kills import aims, kill_modes
from hpcexp.drill.settings import Devices, Preempt, split
from hpcexp.errors import ConfigError
from hpcexp.files.atomic import write_json
from hpcexp.hardware.machine import num_cores
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal

SHORT = ("trainer.max_epochs=3", "trainer.limit_train_batches=10", "model.hidden=[16]", "run.pictures=false")
TWO = ("hardware=cpu", "hardware.devices=2", "strategy=ddp")
MAP = ("data.loader=map", "data.num_workers=2")
WARM = ("launch.isolation=warm",)
"""Two ranks cost one import of torch."""

FORGETFUL = """
import torch
from hpcexp.models.mlp import MLP

class Forgetful(MLP):
    def __init__(self, in_shape, num_classes):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return super().forward(x) * (1 + self.steps / 100)
"""
"""Its outputs depend on a count that no checkpoint has."""


def test_settings_are_told_from_the_experiments_overrides() -> None:
    """Numbers of devices as a sweep has them, everything else as YAML."""
    assert (Preempt(kills=5, seed=7, keep=True), ["model=cnn", "seed=2"]) == split(
        Preempt, ["drill.kills=5", "model=cnn", "drill.seed=7", "seed=2", "drill.keep=true"]
    )
    assert (Devices(devices=(1, 2, 4), rtol=1e-6), []) == split(Devices, ["drill.devices=1,2,4", "drill.rtol=1e-6"])


@pytest.mark.parametrize(
    ("override", "detail"),
    [
        ("drill.kill=3", "Did you mean 'kills'?"),
        ("drill.kills=many", "drill.kills=many: not a whole number."),
        ("drill.kills=0", "it must be at least 1"),
        ("drill.keep=1", "drill.keep=1: not true or false."),
    ],
)
def test_a_wrong_setting_is_named(override: str, detail: str) -> None:
    """With what it should be."""
    with pytest.raises(ConfigError) as caught:
        split(Preempt, [override])
    assert detail in str(caught.value)


@pytest.mark.parametrize("devices", ["1", "1,1", "1,zwei", "0,1", ""])
def test_devices_are_two_different_numbers_or_more(devices: str) -> None:
    """Nothing else can be compared."""
    with pytest.raises(ConfigError, match=r"Fix: drill\.devices=1,2"):
        split(Devices, [f"drill.devices={devices}"])


def test_the_seed_decides_the_kills() -> None:
    """Three are of three kinds; steps rise."""
    dealt = [(kill_modes(rng, 3, 2), aims(rng, 3, 20)) for rng in (random.Random(5), random.Random(5))]
    assert dealt[0] == dealt[1]
    kinds, steps = dealt[0]
    assert {(signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGKILL, False)} == {
        (way.signal, way.rank is None) for way in kinds
    }
    assert sorted(set(steps)) == steps
    assert 7 == len(kill_modes(random.Random(1), 7, 1))


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., RunDir]:
    """A run directory with a summary and a journal of `{metric: {step: value}}`."""

    def make(name: str, metrics: dict[str, list[tuple[int, float]]], **summary: object) -> RunDir:
        run = RunDir(tmp_path / name)
        journal = Journal(run.journal)
        journal.append([(step, {metric: value}) for metric, points in metrics.items() for step, value in points])
        journal.close()
        facts = {"weights_sha256": "a" * 64, "steps": 2, "epochs": 1, "test": {"test/acc": 0.5}}
        write_json(run.summary, {**facts, **summary})
        return run

    return make


def test_equal_runs_compare_equal(finished: Callable[..., RunDir]) -> None:
    """Also where a value is no number."""
    points = {"train/loss": [(1, 0.5), (2, math.nan)]}
    found = compared(finished("a", points), finished("b", points))
    assert [("weights", True), ("summary", True), ("metrics", True)] == [(c.what, c.is_same) for c in found]


@pytest.mark.parametrize(
    ("points", "detail"),
    [
        ([(1, 0.5), (2, 0.25), (3, 0.13)], "first at step 3: train/loss 0.125 ≠ 0.13"),
        ([(1, 0.5), (3, 0.125)], "first at step 2: train/loss 0.25 ≠ (missing)"),
        ([(1, 0.5), (2, 0.25), (2, 0.25), (3, 0.125)], "first at step 2: train/loss 0.25 ≠ 0.25 and 0.25"),
    ],
)
def test_the_first_value_that_differs_is_named(
    finished: Callable[..., RunDir], points: list[tuple[int, float]], detail: str
) -> None:
    """Another one, a lost one, one that is there twice."""
    whole = finished("whole", {"train/loss": [(1, 0.5), (2, 0.25), (3, 0.125)]})
    killed = finished("killed", {"train/loss": points}, weights_sha256="b" * 64, test={"test/acc": 0.4})
    assert [
        Check("weights", is_same=False, detail="aaaaaaaaaaaa ≠ bbbbbbbbbbbb"),
        Check("summary", is_same=False, detail="test test/acc 0.5 ≠ 0.4"),
        Check("metrics", is_same=False, detail=detail),
    ] == compared(whole, killed)


def drill(project: Path, *argv: str) -> Said:
    return ended(start("drill", *argv, cwd=project), timeout_s=600)


def left_in(project: Path) -> list[str]:
    return sorted(path.name for path in project.iterdir() if path.suffix != ".py" and path.name != "__pycache__")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "kills"), [((), 1), ((*TWO, *MAP, *WARM, "tracking=off"), 3)], ids=["tracked", "two warm ranks, map"]
)
def test_kills_leave_no_trace(project: Path, overrides: tuple[str, ...], kills: int) -> None:
    """In weights, summary, journal and MLflow; nor does the drill, on the disk."""
    said = drill(project, "preempt", *SHORT, *overrides, f"drill.kills={kills}", "drill.seed=1")
    assert (0, "") == (said.status, said.err), said
    assert f"{kills} kills, seed 1" in said.out
    assert f"Bit-identical after {kills} kills." in said.out
    assert ("\nMLflow " in said.out) == ("tracking=off" not in overrides)
    assert [] == left_in(project)


@pytest.mark.slow
def test_a_state_that_no_checkpoint_has_is_found(project: Path) -> None:
    """The first metric and step that differ are named, and the runs kept to be looked at."""
    write_module(project, "forgetful", FORGETFUL)
    own = ("~model", "+model._target_=forgetful.Forgetful")
    short = ("trainer.max_epochs=3", "tracking=off", "run.pictures=false")
    said = drill(project, "preempt", *short, *own, "drill.kills=1", "drill.seed=1")
    assert 1 == said.status, said
    assert re.search(r"^metrics +DIFFERS  first at step \d+: (train|val)/\w+ ", said.out, re.MULTILINE)
    assert "drill.seed=1" in said.out
    [kept] = (project / "runs" / ".drills").iterdir()
    assert f"The runs are in runs/.drills/{kept.name}" in said.out


def test_a_training_too_short_for_the_kills_is_a_mistake(project: Path, hpcexp: Callable[..., Said]) -> None:
    """Known before anything starts."""
    said = hpcexp("drill", "preempt", "debug=fast", "drill.kills=2")
    assert 2 == said.status
    assert "drill.kills=2: the training has 5 steps" in said.err
    assert [] == left_in(project)


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one(project: Path) -> None:
    """Within rounding."""
    said = drill(project, "devices", *SHORT, *WARM, "hardware=cpu", "tracking=off", "drill.rtol=1e-6")
    assert 0 == said.status, said
    assert "The same losses within 1e-06" in said.out
    assert [] == left_in(project)


@pytest.mark.slow
def test_layers_and_random_numbers_that_ranks_differ_by_are_named(project: Path) -> None:
    """Before the trainings, and in the verdict."""
    code = "import torch\n\nclass Noise:\n    def __call__(self, x):\n        return x + 0.1 * torch.randn_like(x)\n"
    write_module(project, "noise", code)
    slight = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "model.dropout=0.1", "hardware=cpu", *WARM)
    lean = ("tracking=off", "run.pictures=false")
    said = drill(project, "devices", "model=cnn", "data.augment._target_=noise.Noise", *slight, *lean)
    assert 1 == said.status, said
    before, _, after = said.out.partition("1 device: ")
    for cause in ("BatchNorm2d (layers.1, layers.5)", "Dropout (layers.8)", "data.augment"):
        assert cause in before
        assert f"Expected: {cause}" in after


@pytest.mark.parametrize(("devices", "fix"), [("1,4096", "1,{cores}"), ("4096,4097", "1,{cores}"), ("1,2,4096", "1,2")])
def test_a_number_of_devices_that_is_not_there_is_a_mistake(
    project: Path, hpcexp: Callable[..., Said], devices: str, fix: str
) -> None:
    """Known before anything starts, and told of the setting that has asked for it."""
    if (cores := num_cores()) < 2:
        pytest.skip("one core has no two numbers of devices")
    said = hpcexp("drill", "devices", "hardware=cpu", f"drill.devices={devices}")
    assert 2 == said.status
    assert "drill.devices=4096, but " in said.err
    assert f"\nFix: drill.devices={fix.format(cores=cores)}\n" in said.err
    assert "hardware.devices" not in said.err
    assert [] == left_in(project)


def test_what_is_wrong_on_any_number_of_devices_is_told_once(hpcexp: Callable[..., Said]) -> None:
    """A problem of one of them is reported for that one."""
    said = hpcexp("drill", "devices", "hardware=cpu", "optimizer.lr=-1", "data.global_batch_size=65")
    assert 2 == said.status
    assert "2 problems:\n\noptimizer.lr=-1 is out of range" in said.err
    assert "\n\ndrill.devices=2: data.global_batch_size=65 does not divide over 2 ranks (drill.devices=2)." in said.err
