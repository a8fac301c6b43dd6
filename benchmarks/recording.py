"""What recording every step takes of training by the clock, and what a million points cost to sync.

*A step* is wall-clock time, from the first hundred steps' end to the last step, of a whole `hpcexp train` whose sync
process writes to SQLite beside it; against the same command with nothing recorded between its validations and nothing
synced. With one rank of one thread the sync process has the second core to itself; two ranks leave it none. Lightning's
own MLFlowLogger at every step is in `benchmarks.step`.

*A million points* are 500,000 journalled steps of two metrics, sent by `hpcexp sync`, and by MLflow's own client in its
largest batches (of 1,000; a tenth of the points, multiplied), into databases that are there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks import ends
from benchmarks.measure import Row, cpu_seconds, interleaved, megabytes
from benchmarks.size import size
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.journal import Journal

PAIRS = 5
ALONE_GOAL, SHARED_GOAL = 1 / 0.97, 1 / 0.88
EARLY = size(100, 5)
"""Steps that do not count."""
POINTS = size(1_000_000, 10_000)
PART = 10
"""Of the points, what MLflow's client sends."""
TRAIN = (
    *("-m", "hpcexp", "train", "--fresh", "hardware=cpu", "hardware.threads_per_rank=1", "launch.progress=none"),
    *size(("trainer.max_epochs=150", "trainer.val_every_epochs=50"), ("trainer.max_epochs=1",)),
    "run.pictures=false",
    "callbacks.stopwatch._target_=benchmarks.stopwatch.Stopwatch",
)
RECORDED = ("trainer.log_every_n_steps=1",)
BARE = ("trainer.log_every_n_steps=1000000", "tracking=off")
RANKS = {
    "a core of its own": ("hardware.devices=1",),
    **size({"no core of its own": ("hardware.devices=2", "strategy=ddp")}, {}),
}
CLIENT = """
import sys, time
from mlflow import MlflowClient
from mlflow.entities import Metric
client = MlflowClient(sys.argv[1])
run = client.create_run("0").info.run_id
for first in range(0, int(sys.argv[2]), 1000):
    steps = range(first // 2, first // 2 + 500)
    metrics = [Metric(key, 1 / (s + 1), 1_700_000_000_000 + s, s) for s in steps for key in ("train/loss", "train/lr")]
    client.log_batch(run, metrics=metrics)
"""


def rows(pairs: int, scratch: Path) -> Iterator[Row]:
    """The table's lines."""
    for where, goal in zip(RANKS, (ALONE_GOAL, SHARED_GOAL), strict=False):
        yield _steps(where, goal, pairs, scratch)
    yield from _million(scratch)


def _steps(where: str, goal: float, pairs: int, scratch: Path) -> Row:
    ways: Mapping[str, Callable[[], float]] = {
        "recorded": partial(step_s, (*RANKS[where], *RECORDED), scratch),
        "bare": partial(step_s, (*RANKS[where], *BARE), scratch),
    }
    taken = interleaved(ways, pairs)
    what = f"step of `digits_mlp`, everything recorded, the sync process on {where} / nothing recorded"
    return Row(what, taken["recorded"], taken["bare"], round(goal, 2))


def step_s(overrides: tuple[str, ...], scratch: Path) -> float:
    """Wall-clock seconds a step, of a run in a new directory."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        cpu_seconds([*TRAIN, *overrides], Path(directory))
        times = ends.read(Path(directory))
    return (times[-1] - times[EARLY]) / (len(times) - 1 - EARLY)


def _million(scratch: Path) -> list[Row]:
    cpu_seconds(["-m", "hpcexp", "train", "trainer.max_epochs=1", "run.pictures=false"], scratch)
    [run] = find_runs(scratch / "runs")
    database = scratch / "runs" / "mlflow.db"
    before = database.stat().st_size
    _lengthened(run)
    seconds = _timed(["-m", "hpcexp", "sync"], scratch)
    grown = float(database.stat().st_size - before)
    written = float(run.journal.stat().st_size)
    own = _timed(["-c", CLIENT, f"sqlite:///{database}", str(POINTS // PART)], scratch) * PART
    return [
        Row(f"`hpcexp sync` of {POINTS:,} points / MLflow's client", [seconds], [own], 1.0),
        Row(f"{POINTS:,} points in SQLite / in the journal", [grown], [written], None, megabytes),
    ]


def _lengthened(run: RunDir) -> None:
    """Have more in the journal than MLflow has been sent."""
    journal = Journal(run.journal)
    steps = range(1000, 1000 + POINTS // 2)
    journal.append((step, {"train/loss": 1 / step, "train/lr": 0.001}) for step in steps)
    journal.close()


def _timed(arguments: list[str], cwd: Path) -> float:
    began = time.monotonic()
    cpu_seconds(arguments, cwd)
    return time.monotonic() - began
