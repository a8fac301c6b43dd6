"""Interrupted runs go on by themselves, and end bit for bit where an uninterrupted one ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from helpers import LEAN, Said, command, write_module

from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.checkpoint_checksum import is_intact, read_note
from hpcexp.runs.journal import read_points

pytestmark = pytest.mark.slow

KILLER = """
import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from hpcexp.rundir import RunDir
from hpcexp.files.documents import read_plain
from hpcexp.train.engine.interrupts import Interrupts


class Killer(pl.Callback):
    '''Attempt n sends the n-th of KILLS (`STEP SIGNAL WHOM`, WHOM a rank's number or `supervisor`) after its step.

    The first checkpoint is written before, or the next attempt would be the first one again.
    '''

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        kills = list(filter(None, os.environ.get("KILLS", "").split(",")))
        run = RunDir(Path(trainer.default_root_dir))
        status = read_plain(run.status)
        attempt = status["attempt"]
        if attempt > len(kills) or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, number, whom = kills[attempt - 1].split()
        if trainer.global_step == int(step) and str(trainer.global_rank) == whom.replace("supervisor", "0"):
            while not run.last.exists():
                time.sleep(0.001)
            os.kill(status["pid"] if whom == "supervisor" else os.getpid(), getattr(signal, number))
            [control] = [c for c in trainer.callbacks if isinstance(c, Interrupts)]
            while control._signals.received is None:  # a supervisor passes it on a little later
                time.sleep(0.001)


class Noise(torch.nn.Module):
    def forward(self, inputs):
        return inputs + 0.1 * torch.randn_like(inputs)
"""

EXACT = (
    "model.hidden=[16]",
    "model.dropout=0.2",
    "data.augment._target_=killer.Noise",
    "data.global_batch_size=128",
    "trainer.limit_train_batches=10",
    "trainer.max_epochs=4",
    "trainer.accumulate_grad_batches=2",
    "trainer.ema_decay=0.9",
    "trainer.patience=2",
    "trainer.min_delta=0.05",
    "trainer.log_every_n_steps=3",
    "checkpoint.every_s=null",
    "checkpoint.every_steps=2",
    "callbacks.killer._target_=killer.Killer",
    "launch.progress=none",
)
"""Nine optimizer steps in each of at most four epochs, with all that has a state."""

MAP = ("data.loader=map", "data.num_workers=2")
TWO = ("hardware=cpu", "hardware.devices=2")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the killer."""
    project = tmp_path_factory.mktemp("resume")
    write_module(project, "killer", KILLER)
    return project


class Train(Protocol):
    """Train EXACT below `root`; in a process of its own where its supervisor is to be killed."""

    def __call__(self, *overrides: str, kills: str = "", root: str = "runs", alone: bool = False) -> Said: ...


@pytest.fixture
def train(shared: Path, tmp_path: Path, train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> Train:
    """`hpcexp train` of EXACT below `tmp_path`."""
    monkeypatch.chdir(shared)

    def call(*overrides: str, kills: str = "", root: str = "runs", alone: bool = False) -> Said:
        tracked = [] if any("tracking" in override for override in overrides) else ["tracking=off"]
        asked = [*EXACT, *overrides, *tracked, f"run.root={tmp_path / root}"]
        monkeypatch.setenv("KILLS", kills)
        return command("train", *LEAN, *asked, cwd=shared) if alone else train(*asked)

    return call


def run_in(root: Path) -> RunDir:
    [run] = find_runs(root)
    return run


def values(run: RunDir) -> list[tuple[str, int, float]]:
    """Every value of the journal."""
    return sorted((key, p.step, value) for p in read_points(run.journal)[0] for key, value in p.metrics.items())


def result(run: RunDir) -> dict[str, Any]:
    """What must be the same of two summaries."""
    summary = read_plain(run.summary)
    best = {k: v for k, v in summary["best"].items() if k not in ("sha256", "bytes")}
    return {k: summary[k] for k in ("weights_sha256", "epochs", "steps", "test", "diverged")} | {"best": best}


@pytest.mark.parametrize(
    ("overrides", "kills"),
    [
        ((), ["3 SIGKILL 0", "8 SIGTERM supervisor", "10 SIGTERM 0", "13 SIGKILL supervisor"]),
        (MAP, ["4 SIGTERM supervisor", "9 SIGKILL supervisor", "12 SIGKILL 0"]),
        (("scheduler=plateau", "trainer.patience=null"), ["7 SIGTERM supervisor", "14 SIGKILL 0"]),
        (TWO, ["4 SIGKILL 1", "8 SIGTERM supervisor", "12 SIGKILL supervisor"]),
        ((*TWO, *MAP), ["7 SIGKILL 1", "13 SIGTERM 1"]),
    ],
    ids=["resident", "map", "plateau", "two ranks", "two ranks, map"],
)
def test_killed_and_continued_is_the_same_to_the_bit(
    train: Train, tmp_path: Path, overrides: tuple[str, ...], kills: list[str]
) -> None:
    """Weights, tests, best checkpoint; every value of the journal once."""
    whole = train(*overrides, root="whole")
    assert 0 == whole.status, whole.err
    for number in range(len(kills)):
        said = train(*overrides, kills=",".join(kills), alone=kills[number].endswith("SIGKILL supervisor"))
        assert (143 if "SIGTERM" in kills[number] else 1) == said.status or "KILL supervisor" in kills[number], said
        assert ("Continuing from step " in said.out) == (number > 0), said
    last = train(*overrides, kills=",".join(kills))
    assert 0 == last.status, last.err
    run, uninterrupted = run_in(tmp_path / "runs"), run_in(tmp_path / "whole")
    assert len(kills) + 1 == read_plain(run.status)["attempt"]
    assert values(uninterrupted) == values(run)
    assert result(uninterrupted) == result(run)
    assert ["best.ckpt", "last.ckpt"] == sorted(path.name for path in run.checkpoints.iterdir())


def flip(path: Path) -> None:
    """One bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The second half is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_a_damaged_checkpoint_is_not_gone_on_from(train: Train, tmp_path: Path) -> None:
    """The one before it is, loudly and to the same end; where that is damaged too, nothing starts but afresh."""
    assert 0 == train(root="whole").status
    kills = ["9 SIGKILL 0", "13 SIGKILL 0"]
    train(kills=kills[0])
    run = run_in(tmp_path / "runs")
    newest, before = read_note(run.last), read_note(run.previous)
    assert newest is not None
    assert before is not None
    assert (newest.step or 0) > (before.step or 0)

    flip(run.last)
    said = train(kills=",".join(kills))
    assert f"WARNING: {run.last} is damaged" in said.err
    assert f"Continuing from step {before.step} of 36" in said.out

    cut(run.last)
    flip(run.previous)
    said = train()
    assert 2 == said.status
    assert "are damaged" in said.err
    assert "--fresh" in said.err
    assert not is_intact(run.last)
    run.previous.unlink()
    run.last.unlink()

    said = train(kills="9 SIGKILL 0")
    assert "Continuing" not in said.out
    cut(run.last)
    assert 0 == train().status
    assert values(run_in(tmp_path / "whole")) == values(run)
    assert result(run_in(tmp_path / "whole")) == result(run)


def test_plan_says_where_a_run_would_go_on_and_fresh_starts_over(
    train: Train, hpcexp: Callable[..., Said], tmp_path: Path
) -> None:
    """The old try is kept beside."""
    train(kills="9 SIGTERM 0")
    run = run_in(tmp_path / "runs")
    asked = [*EXACT, f"run.root={tmp_path / 'runs'}", "tracking=off"]
    assert "interrupted: `hpcexp train` would resume from step " in hpcexp("plan", *asked).out
    dry = hpcexp("train", *asked, "launch=dry")
    assert 0 == dry.status, dry.err
    assert [run.path] == [found.path for found in find_runs(tmp_path / "runs")]

    said = train("--fresh")
    assert 0 == said.status, said.err
    assert "Continuing" not in said.out
    assert {run.path.name, f"{run.path.name}~1"} == {found.path.name for found in find_runs(tmp_path / "runs")}
    assert 1 == read_plain(run.status)["attempt"]


@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_a_continued_run_is_one_run_in_mlflow(train: Train, tmp_path: Path) -> None:
    """Each value once, finished in the end."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = f"tracking.uri={uri}"
    kills = ["9 SIGKILL supervisor", "13 SIGTERM supervisor"]
    for number in range(len(kills)):
        assert 0 != train(tracking, kills=",".join(kills), alone=number == 0).status
    said = train(tracking, kills=",".join(kills))
    assert (0, "") == (said.status, said.err)
    run, client = run_in(tmp_path / "runs"), MlflowClient(uri)
    [recorded] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert "FINISHED" == recorded.info.status
    history = [
        (m.key, m.step, m.value)
        for key in recorded.data.metrics
        for m in client.get_metric_history(recorded.info.run_id, key)
    ]
    assert len(set(history)) == len(history)
    assert values(run) == sorted(history)
