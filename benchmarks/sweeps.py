"""Sixteen trainings of the digits MLP as a sweep: by hpcexp, and by what people use instead.

Each way is a whole command and all that it leaves behind, sync to MLflow among it, divided by its jobs: wall-clock
time on two cores, and CPU time. *Once warm* is the time from the second job's end to the last one's, by the jobs after
the second, so that imports and planning fall out. The peers run `benchmarks.stock_sweep` through Hydra's own launcher,
through its joblib launcher with two workers, in a process for each job, two at once, and, where Ray is installed, as
trials of Ray Tune on two workers. All have a store of MLflow's that is there already.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import MEMORY_FILE, TIMES_FILE
from benchmarks.measure import Row, cpu_seconds, environment, interleaved, megabytes
from benchmarks.orphans import cpu_seconds_of_all
from benchmarks.size import size

PAIRS = 3
JOBS = size(16, 3)
STOCK = ("-m", "benchmarks.stock_sweep")
SEEDS = f"seed={','.join(map(str, range(1, JOBS + 1)))}"
OURS = ("-m", "hpcexp", "train", "-m", SEEDS, "trainer.max_epochs=3", "hardware=cpu", "hardware.threads_per_rank=1")
MEMORY = "callbacks.memory._target_=benchmarks.memory.Memory"
MAKE_STORE = """
import sys
from pathlib import Path
from hpcexp.tracking.mlflow.store import connect
connect(sys.argv[1], Path("artifacts").absolute())
"""


@dataclass(frozen=True)
class Cost:
    """Of one sweep, for each of its jobs."""

    wall: float
    cpu: float
    warm: float
    """Seconds from one job's end to the next one's."""
    memory: float
    """Bytes of the process that trains which no other shares, in the middle of all jobs."""


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    store = scratch / "mlflow.db"
    made = [sys.executable, "-c", MAKE_STORE, f"sqlite:///{store}"]
    subprocess.run(made, env=environment(), cwd=scratch, check=True, capture_output=True)
    runs = {"hpcexp": ours, "Hydra's launcher": basic}
    runs |= size({"joblib launcher": joblib, "a process each": processes}, {})
    if size(importlib.util.find_spec("ray"), None):
        runs["Ray Tune"] = ray

    def way(name: str) -> Cost:
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            return runs[name](Path(directory), store)

    costs = interleaved({name: partial(way, name) for name in runs}, pairs)
    memory = _both(costs, "Hydra's launcher", "memory")
    return [
        *(row for peer in runs if peer != "hpcexp" for row in _against(peer, costs)),
        Row("private memory of a process that trains, hpcexp / Hydra's launcher", *memory, 0.1, megabytes),
    ]


def ours(directory: Path, store: Path) -> Cost:
    """The sweep as it is by default, pictures and the sweep's answer with it."""
    (directory / "runs").mkdir()
    shutil.copy(store, directory / "runs" / "mlflow.db")
    wall, cpu = _whole([*OURS, MEMORY], directory)
    status = [json.loads(file.read_text()) for file in directory.glob("runs/digits_mlp/*/status.json")]
    return _cost(wall, cpu, directory, [one["ended"] for one in status])


def basic(directory: Path, store: Path) -> Cost:
    """One job after the other, in one process."""
    return _stock(directory, store, [*STOCK, "-m", SEEDS])


def joblib(directory: Path, store: Path) -> Cost:
    """Two processes that take the jobs in turn."""
    return _stock(directory, store, [*STOCK, "-m", SEEDS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])


def ray(directory: Path, store: Path) -> Cost:
    """Two workers of Ray."""
    wall, cpu = _whole(["-m", "benchmarks.ray_sweep", _copied(store, directory), str(JOBS)], directory)
    return _cost(wall, cpu, directory, _ends(directory))


def processes(directory: Path, store: Path) -> Cost:
    """A new process for each job, two at once."""
    uri = _copied(store, directory)

    def one(seed: int) -> float:
        cwd = directory / str(seed)
        cwd.mkdir()
        return cpu_seconds([*STOCK, f"seed={seed}", f"uri={uri}"], cwd)

    began = time.monotonic()
    with ThreadPoolExecutor(2) as both:
        cpu = sum(both.map(one, range(1, JOBS + 1)))
    return _cost(time.monotonic() - began, cpu, directory, _ends(directory))


def _stock(directory: Path, store: Path, arguments: Sequence[str]) -> Cost:
    wall, cpu = _whole([*arguments, f"uri={_copied(store, directory)}"], directory)
    return _cost(wall, cpu, directory, _ends(directory))


def _copied(store: Path, directory: Path) -> str:
    """The URI of a store of its own."""
    return f"sqlite:///{shutil.copy(store, directory / 'mlflow.db')}"


def _whole(arguments: Sequence[str], directory: Path) -> tuple[float, float]:
    """Wall-clock and CPU time of a command, and of what it leaves behind."""
    began = time.monotonic()
    cpu = cpu_seconds_of_all(arguments, directory)
    return time.monotonic() - began, cpu


def _ends(directory: Path) -> list[float]:
    """When the peers' jobs ended."""
    return [json.loads(file.read_text())["ended"] for file in directory.rglob(TIMES_FILE)]


def _cost(wall: float, cpu: float, directory: Path, ends: Sequence[float]) -> Cost:
    assert len(ends) == JOBS, ends
    _, second, *later = sorted(ends)
    private = [json.loads(file.read_text())["private"] for file in directory.rglob(MEMORY_FILE)]
    return Cost(wall / JOBS, cpu / JOBS, (later[-1] - second) / len(later), statistics.median(private))


def _against(peer: str, costs: Mapping[str, Sequence[Cost]]) -> list[Row]:
    """Every cost of ours beside a peer's."""
    named = {"wall": "time", "cpu": "CPU time", "warm": "time, once warm,"}
    return [Row(f"{text} of a job, hpcexp / {peer}", *_both(costs, peer, what), 1.0) for what, text in named.items()]


def _both(costs: Mapping[str, Sequence[Cost]], peer: str, what: str) -> tuple[list[float], list[float]]:
    return [getattr(c, what) for c in costs["hpcexp"]], [getattr(c, what) for c in costs[peer]]
