"""Two hundred kills of whatever process belongs to a sweep, in small sweeps of their own. `pytest -m soak`.

HPCEXP_SOAK_KILLS: how many; HPCEXP_SOAK_SEED: of which seed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from helpers import command, environment, wait_until
from record_support import journalled, query, stored

from hpcexp.files.atomic import is_half_written
from hpcexp.files.documents import read_plain
from hpcexp.hardware.device_locks import device_locks
from hpcexp.rundir import RunDir, find_runs

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(0)]

KILLS = int(os.environ.get("HPCEXP_SOAK_KILLS", "200"))
SEED = int(os.environ.get("HPCEXP_SOAK_SEED", "1"))
MARK = "HPCEXP_SOAK_MARK"
"""In the environment of every process that a sweep starts, whoever its parent is by now."""
COMMAND_S = 600
JOBS = (
    *("-m", "seed=range(1,5)", "trainer.max_epochs=4", "trainer.limit_train_batches=20", "trainer.log_every_n_steps=2"),
    *("checkpoint.every_s=null", "checkpoint.every_steps=5", "launch.progress=none", "data.loader=map"),
)
KINDS: dict[str, tuple[str, ...]] = {
    "warm": ("data.num_workers=2",),
    "fresh": ("launch.isolation=process", "run.pictures=false"),
    "two ranks": ("hardware=cpu", "hardware.devices=2", "strategy=ddp"),
    "pictures": ("launch.max_jobs=1", "launch.isolation=warm"),
}
PER_SWEEP = 10
"""Kills of one sweep: each has a store of its own that is to be made."""


@dataclass
class Sweep:
    """A sweep that is killed, in a project of its own."""

    project: Path
    kind: str
    rng: random.Random
    killed: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    @property
    def asked(self) -> tuple[str, ...]:
        return ("train", *JOBS, *KINDS[self.kind])

    @property
    def log(self) -> Path:
        return self.project / "said.txt"

    @property
    def env(self) -> dict[str, str]:
        return environment(**{MARK: self.project.name, "HPCEXP_DEVICE_LOCKS": str(self.project / "locks")})

    @property
    def runs(self) -> list[RunDir]:
        return list(find_runs(self.project / "runs"))

    @contextmanager
    def started(self, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
        """`hpcexp argv`, whose output is kept."""
        self.starts += 1
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hpcexp", *argv],
                cwd=self.project,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What lives of the sweep, by what it is."""
        found: dict[str, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.project.name and process.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(what_it_is(process), []).append(process)
            except psutil.Error:
                continue
        return found

    def kill_one(self) -> str | None:
        """Kill a process of a kind that chance chooses; None where there is none."""
        found = self.processes()
        if not found:
            return None
        kinds = sorted(found)  # those that were hit seldom first: drivers and ranks are nearly always there
        [kind] = self.rng.choices(kinds, [1 / (1 + self.killed[kind]) ** 2 for kind in kinds])
        try:
            self.rng.choice(found[kind]).kill()
        except psutil.NoSuchProcess:
            return None
        self.killed[kind] += 1
        return kind

    def suffer(self, number: int) -> None:
        """Have the same command begin again and again, and kill what chance chooses."""
        while self.killed.total() < number:
            verb = ("sync",) if self.starts and self.rng.random() < 0.15 else self.asked
            with self.started(*verb) as process:
                if self.rng.random() < 0.5:  # otherwise most would die while they plan
                    wait_until(lambda: process.poll() is not None or "rank" in self.processes(), "ranks", COMMAND_S)
                until = self.killed.total() + self.rng.randint(1, 4)
                while process.poll() is None and self.killed.total() < min(number, until):
                    time.sleep(self.rng.choice([0.05, 0.3, 1.0, 3.0]) * self.rng.random() * 2)
                    self.kill_one()
                # The next command may find this one at work, or what a killed driver has left.
                if self.rng.random() < 0.3 and process.poll() is None:
                    process.kill()
                    self.killed["driver"] += 1


def what_it_is(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if "resource_tracker" in words:
        return "resource tracker"
    parent = process.parent()
    above = " ".join(parent.cmdline()) if parent else ""
    if "forkserver" in words:
        over = parent and parent.parent()
        is_worker = over and "forkserver" in above and "forkserver" in " ".join(over.cmdline())
        return "data worker" if is_worker else "rank" if "forkserver" in above else "server"
    for module, kind in (
        ("sync.sweep_process", "sweep sync"),
        ("sync.run_process", "run sync"),
        ("hpcexp.job", "rank"),
    ):
        if module in words:
            return "data worker" if kind == "rank" and module in above else kind
    return "sync" if words.endswith("hpcexp sync") else "driver" if "hpcexp train" in words else "other"


@pytest.fixture(autouse=True)
def _only_when_asked_for(request: pytest.FixtureRequest) -> None:
    """`-m slow` alone does not mean this hour."""
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("takes half an hour: pytest -m soak")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Kind → run → digest of its weights, where nobody kills anything."""
    found = {}
    for kind, more in KINDS.items():
        project = tmp_path_factory.mktemp("untouched")
        said = command("train", *JOBS, *more, "tracking=off", cwd=project)
        assert 0 == said.status, said
        found[kind] = weights(list(find_runs(project / "runs")))
    return found


def weights(runs: list[RunDir]) -> dict[str, str]:
    return {run.path.name: read_plain(run.summary)["weights_sha256"] for run in runs}


@pytest.mark.parametrize("number", range((KILLS + PER_SWEEP - 1) // PER_SWEEP))
def test_no_kill_of_any_process_loses_anything(
    tmp_path: Path, untouched: dict[str, dict[str, str]], number: int
) -> None:
    """The same command once more finishes all, MLflow has every value once, and nothing is left behind."""
    kind = list(KINDS)[number % len(KINDS)]
    sweep = Sweep(tmp_path, kind, random.Random(f"{SEED} {number}"))
    sweep.suffer(min(PER_SWEEP, KILLS - number * PER_SWEEP))
    print(number, kind, dict(sweep.killed), sweep.starts, "commands")

    last = sweep.log.stat().st_size
    with sweep.started(*sweep.asked) as process:
        assert 0 == process.wait(COMMAND_S), sweep.log.read_text()[last:]
    with sweep.started("sync") as process:
        assert 0 == process.wait(COMMAND_S), sweep.log.read_text()[last:]
    assert "Traceback" not in sweep.log.read_text()[last:]

    assert ["finished"] * 4 == [read_plain(run.status)["state"] for run in sweep.runs]
    assert untouched[kind] == weights(sweep.runs)
    database = sweep.project / "runs" / "mlflow.db"
    assert [("ok",)] == query(database, "PRAGMA integrity_check")
    assert [("FINISHED", 5)] == query(database, "SELECT status, count(*) FROM runs GROUP BY status")
    for run in sweep.runs:
        known = stored(database, read_plain(run.path / "mlflow.json")["run_id"])
        assert journalled(run) == [value for value in known if not value[0].startswith("system/")]

    wait_until(lambda: not sweep.processes(), "no process is left", 30)
    with device_locks(sweep.project / "locks") as held:
        assert held is not None
        assert {} == held.holders()
    assert [] == [path for run in sweep.runs for path in run.checkpoints.iterdir() if is_half_written(path)]
