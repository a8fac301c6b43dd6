"""The project's parts fit together, and its default experiment runs from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from __NAME__.data import KINDS, Waveforms
from __NAME__.model import SignalNet

PROJECT = Path(__file__).parents[1]


def hpcexp(*arguments: str) -> str:
    """Output of an hpcexp command in the project."""
    command = [sys.executable, "-m", "hpcexp", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_model_gives_a_logit_for_each_class() -> None:
    """Whatever the length of the signals."""
    model = SignalNet(in_shape=(1, 64), num_classes=4, channels=[8, 16], kernel_size=7)
    assert model(torch.zeros(2, 1, 64)).shape == (2, 4)
    assert model(torch.zeros(2, 1, 100)).shape == (2, 4)


def test_data_is_what_its_facts_say() -> None:
    """Sizes, shape and classes, and the same samples every time."""
    data = Waveforms(num_train=40, num_val=20, num_test=20)
    facts, train = data.facts(), data.load("train")
    assert len(train) == facts.num_train
    assert tuple(train.inputs.shape[1:]) == facts.inputs["signal"].shape
    assert set(train.targets.tolist()) == set(range(len(KINDS)))
    assert torch.equal(train.inputs, data.load("train").inputs)


def test_a_signal_in_a_file_is_read_as_one_input() -> None:
    """The example file has the shape of the model's inputs."""
    data = Waveforms()
    assert tuple(data.read(PROJECT / "examples" / "square.txt").shape) == data.facts().inputs["signal"].shape


def test_default_experiment_trains(tmp_path: Path) -> None:
    """One epoch, through the command line, without MLflow."""
    hpcexp("train", "trainer.max_epochs=1", "tracking=off", f"run.root={tmp_path}")
    [summary] = tmp_path.glob("*/*/summary.json")
    assert 0.25 < json.loads(summary.read_text())["test"]["test/acc"] <= 1


def test_sweep_is_planned(tmp_path: Path) -> None:
    """Every combination of conf/sweep/capacity.yaml passes the checks."""
    assert hpcexp("plan", "-m", "sweep=capacity", f"run.root={tmp_path}").splitlines()[-1] == "4 jobs: 4 runs"
