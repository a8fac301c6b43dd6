"""Processes that are killed from outside, as by `kill -9` or for memory: what is begun again, and how often."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
from helpers import FAST, LEAN, Said, only_run, write_conf, write_module

from hpcexp.errors import RunError
from hpcexp.files.documents import read_plain
from hpcexp.launch.supervisor import forkserver as warm
from hpcexp.rundir import find_runs

pytestmark = pytest.mark.slow

MORTAL = """
import ctypes, os, signal, time
from pathlib import Path
import psutil
from hpcexp.models.mlp import MLP

class Mortal(MLP):
    '''Dies in its third step, in its last rank: `times` times for each way and number of ranks.'''
    def __init__(self, in_shape, num_classes, how, times):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.how, self.times, self.left = how, times, 3

    def forward(self, x):
        self.left -= self.training
        is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        deaths = Path("deaths", os.environ["WORLD_SIZE"] + self.how)
        deaths.parent.mkdir(exist_ok=True)
        if self.left == 0 and is_last and (deaths.stat().st_size if deaths.exists() else 0) < self.times:
            with deaths.open("a") as file:
                file.write(".")
            getattr(self, self.how)()
        return super().forward(x)

    def killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def crashed(self):
        ctypes.string_at(0)

    def robbed(self):
        for worker in psutil.Process().children():
            worker.kill()
        time.sleep(60)
"""


@pytest.fixture
def mortal(project: Path) -> Path:
    """A project with a model that is killed once."""
    write_module(project, "mortal", MORTAL)
    write_conf(project, {"model/mortal.yaml": "_target_: mortal.Mortal\nhow: killed\ntimes: 1\n"})
    return project


def states(project: Path) -> list[tuple[str, int]]:
    """State and attempt of every run."""
    found = [read_plain(run.status) for run in find_runs(project / "runs")]
    return sorted((status["state"], status["attempt"]) for status in found)


@pytest.mark.parametrize(("isolation", "devices"), [("process", [2]), ("warm", [1, 2])])
def test_a_job_of_a_sweep_whose_rank_is_killed_is_repeated(
    mortal: Path, hpcexp: Callable[..., Said], isolation: str, devices: list[int]
) -> None:
    """By the same command, with one rank and with two, and it says so."""
    numbers = ",".join(map(str, devices))
    asked = ("model=mortal", "hardware=cpu", f"hardware.devices={numbers}", f"launch.isolation={isolation}")
    said = hpcexp("train", "-m", *asked, *FAST)
    assert 0 == said.status, said
    for number in devices:
        assert f"rank {number - 1} was killed by SIGKILL: begins again (launch.retries: 1 of 2)" in said.out
    assert [("finished", 2)] * len(devices) == states(mortal)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # joblib's
def test_a_job_of_hydras_joblib_launcher_is_repeated_too(mortal: Path, hpcexp: Callable[..., Said]) -> None:
    """Its rank was killed, not the process of joblib's."""
    said = hpcexp("train", "-m", "hydra/launcher=joblib", "model=mortal", "hydra.launcher.n_jobs=1", *FAST)
    assert 0 == said.status, said
    assert [("finished", 2)] == states(mortal)


def test_a_trial_that_is_killed_is_not_told_as_failed(mortal: Path, hpcexp: Callable[..., Said]) -> None:
    """The study keeps it open, and the same command finishes it under its number."""
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.1)")
    asked = ("train", "-m", *search, "model=mortal", "launch.retries=0", *FAST)
    assert 1 == hpcexp(*asked).status
    said = hpcexp(*asked)
    assert 0 == said.status, said
    assert [("finished", 1), ("finished", 2)] == states(mortal)


def test_what_is_killed_each_time_ends_and_a_crash_is_not_repeated(mortal: Path, hpcexp: Callable[..., Said]) -> None:
    """The same command tries again what was killed; what crashed waits for --retry-failed."""
    asked = ("train", "-m", "model=mortal", "model.times=4", "model.how=killed,crashed", *FAST)
    said = hpcexp(*asked)
    assert 1 == said.status
    assert "rank 0 was killed by SIGKILL, 3 times in a row without getting further (launch.retries=2)" in said.out
    assert [("failed", 1), ("failed", 3)] == states(mortal)
    again = hpcexp(*asked)
    assert 1 == again.status
    assert "1 failed before, not tried again: --retry-failed does" in again.out
    assert [("failed", 1), ("finished", 5)] == states(mortal)


def test_a_job_that_gets_further_each_time_is_not_given_up(mortal: Path, hpcexp: Callable[..., Said]) -> None:
    """However often it is killed: each attempt ends with a checkpoint of its own."""
    every_step = ("checkpoint.every_steps=1", "checkpoint.every_s=null", "launch.retries=1")
    asked = ("model=mortal", "model.times=5", "trainer.max_epochs=1", "trainer.limit_train_batches=20", "seed=1,2")
    said = hpcexp("train", "-m", *asked, *every_step, "tracking=off", "launch.max_jobs=1", *LEAN)
    assert 0 == said.status, said
    assert 5 == said.out.count("was killed by SIGKILL: resumes from step")


def test_a_killed_data_worker_is_no_mistake_of_the_job(mortal: Path, hpcexp: Callable[..., Said]) -> None:
    """As the kernel likes to choose it where memory runs out."""
    workers = ("data.loader=map", "data.num_workers=2")
    said = hpcexp("train", "-m", "model=mortal", "model.how=robbed", "seed=1,2", *workers, *FAST)
    assert 0 == said.status, said
    assert "launch.retries: 1 of 2" in said.out


def test_a_single_run_whose_rank_was_killed_resumes_when_asked_again(mortal: Path, train: Callable[..., Said]) -> None:
    """It fails, as nobody may be there to see that it is killed for ever."""
    said = train("model=mortal", *FAST)
    assert 1 == said.status
    assert "rank 0 was killed by SIGKILL" in said.err
    status = read_plain(only_run(mortal).status)
    assert ("failed", signal.SIGKILL) == (status["state"], status["signal"])
    assert 0 == train("model=mortal", *FAST).status
    assert [("finished", 2)] == states(mortal)


def server() -> int:
    """The process of the server of warm workers."""
    warm.warm_up()
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def test_a_server_that_was_just_killed_is_started_again() -> None:
    """Although the kernel still takes it apart, and multiprocessing takes it for alive."""
    os.kill(server(), signal.SIGKILL)
    assert warm.idle_memory().private > 0


def test_a_server_that_is_killed_while_it_imports_is_started_again() -> None:
    """As when jobs are planned meanwhile: three of them in a row."""
    killed: set[int] = set()

    def kill() -> None:
        while len(killed) < 3:
            pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
            if pid is not None and pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

    server()
    killer = threading.Thread(target=kill)
    killer.start()
    assert warm.idle_memory().private > 0
    killer.join()
    assert 3 == len(killed)


def test_a_server_that_always_ends_is_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message says where to look, and what does without it."""
    write_module(tmp_path, "ends_at_once", "raise RuntimeError('no library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(warm, "PRELOADED", "ends_at_once")
    os.kill(server(), signal.SIGKILL)
    with pytest.raises(RunError, match=r"(?s)ended 5 times before.*Fix: .*launch.isolation=process"):
        warm.idle_memory()
    assert "RuntimeError: no library" in capfd.readouterr().err
