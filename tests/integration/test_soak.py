"""A hundred kills of trainings by the drill itself, and a sweep of two hundred jobs. `pytest -m soak`."""

from __future__ import annotations

import json
import random
import subprocess
from functools import partial
from pathlib import Path

import pytest
from helpers import ended, start, wait_until, write_conf, write_module
from record_support import query

from hpcexp.files.documents import read_plain
from hpcexp.rundir import find_runs

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(0)]

ONE: tuple[str, ...] = ()
TWO = ("hardware=cpu", "hardware.devices=2", "strategy=ddp")
RESIDENT = ("data.loader=resident",)
MAP = ("data.loader=map", "data.num_workers=2")
MLP = ("trainer.max_epochs=4", "trainer.limit_train_batches=12", "model.dropout=0.1")
CNN = ("experiment=digits_cnn", "trainer.max_epochs=3", "trainer.limit_train_batches=14")
STATEFUL = ("trainer.ema_decay=0.9", "trainer.accumulate_grad_batches=2", "scheduler=plateau")
TIMEOUT_S = 1800


@pytest.fixture(autouse=True)
def _only_when_asked_for(request: pytest.FixtureRequest) -> None:
    """`-m slow` alone does not mean this hour."""
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("takes an hour: pytest -m soak")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("log_every", [1, 4])
@pytest.mark.parametrize("loader", [RESIDENT, MAP], ids=["resident", "map"])
@pytest.mark.parametrize("ranks", [ONE, TWO], ids=["one", "two"])
def test_no_kill_leaves_a_trace(
    tmp_path: Path, ranks: tuple[str, ...], loader: tuple[str, ...], log_every: int, seed: int
) -> None:
    """Seven kills each, 112 in all; one of the sixteen is also held against MLflow."""
    experiment = (*CNN, *STATEFUL) if seed == 2 else MLP
    tracking = [] if (ranks, loader, log_every, seed) == (ONE, MAP, 4, 1) else ["tracking=off"]
    asked = [*experiment, *ranks, *loader, f"trainer.log_every_n_steps={log_every}", *tracking]
    settings = ["drill.kills=7", f"drill.seed={seed * 100 + log_every}"]
    said = ended(start("drill", "preempt", *asked, *settings, cwd=tmp_path), TIMEOUT_S)
    assert 0 == said.status, f"hpcexp drill preempt {' '.join([*asked, *settings])}\n{said.out}\n{said.err}"
    assert "Bit-identical after 7 kills." in said.out


MOODY = """
import os, signal
from pathlib import Path
from hpcexp.models.mlp import MLP

class Moody(MLP):
    '''Of ten moods one always fails, one is killed and survives the second time.'''
    def __init__(self, in_shape, num_classes, mood):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.mood = mood

    def forward(self, x):
        if self.training and self.mood % 10 == 3:
            raise ValueError("in no mood")
        met = Path("met", str(self.mood))
        if self.training and self.mood % 10 == 7 and not met.exists():
            met.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""


def test_two_hundred_jobs_are_all_accounted_for(tmp_path: Path) -> None:
    """With jobs that fail and are killed, and a driver that is killed three times and given again."""
    write_module(tmp_path, "moody", MOODY)
    write_conf(tmp_path, {"model/moody.yaml": "_target_: moody.Moody\nmood: 0\n"})
    (tmp_path / "met").mkdir()
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "run.pictures=false")
    asked = ("train", "-m", "model=moody", "model.mood=range(0,200)", *short)
    chance = random.Random(4)
    for _ in range(3):
        driver = start(*asked, cwd=tmp_path)
        enough = count(tmp_path, "finished") + chance.randint(20, 40)
        wait_until(partial(has_come_to, tmp_path, enough, driver), "jobs", TIMEOUT_S)
        assert None is driver.poll(), ended(driver)
        driver.kill()
        ended(driver)
    said = ended(start(*asked, cwd=tmp_path), TIMEOUT_S)
    assert 1 == said.status
    assert "200 jobs: 180 finished, 20 failed" in said.out.replace("20 failed, 180 finished", "180 finished, 20 failed")
    again = ended(start(*asked, "--retry-failed", cwd=tmp_path), TIMEOUT_S)
    assert 1 == again.status
    assert 180 == count(tmp_path, "finished")
    assert 20 == count(tmp_path, "failed")
    assert 0 == ended(start("sync", cwd=tmp_path), TIMEOUT_S).status

    database = tmp_path / "runs" / "mlflow.db"
    parent = "SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId'"
    assert [("FAILED", 20), ("FINISHED", 180)] == query(
        database, f"SELECT status, count(*) FROM runs WHERE run_uuid IN ({parent}) GROUP BY status ORDER BY status"
    )
    assert [(201,)] == query(database, "SELECT count(*) FROM runs")
    [ledger] = (tmp_path / "runs" / "sweeps").glob("*/jobs.jsonl")
    numbers = [json.loads(line)["job"] for line in ledger.read_text().splitlines()]
    assert list(range(1, 201)) == sorted(set(numbers))


def has_come_to(project: Path, finished: int, driver: subprocess.Popen[str]) -> bool:
    return count(project, "finished") >= finished or driver.poll() is not None


def count(project: Path, state: str) -> int:
    return sum(read_plain(run.status).get("state") == state for run in find_runs(project / "runs"))
