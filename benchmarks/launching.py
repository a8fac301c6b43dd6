"""What a job costs before its first step: forked from a warm server, against a process of its own; in sweeps.

Each round runs the same sweep of small jobs twice, with `launch.isolation=warm` and with `process`. CPU time is that of
a rank from its start to the end of its first step, in the middle of all jobs. Wall-clock time is from the moment when
the supervisor begins with a job to there, in the middle of all jobs but the first, which in a warm sweep waits for the
server's imports. What these and everything else cost is in the row of the whole sweep: the CPU time of the command
and of all that it leaves, among them the server, divided by its jobs.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import METER_FILE
from benchmarks.ends import read
from benchmarks.measure import Row, interleaved
from benchmarks.orphans import cpu_seconds_of_all
from benchmarks.size import size
from hpcexp.rundir import find_runs

PAIRS = 3
GOAL = 0.05
JOBS = size(3, 2)

SWEEP = (
    *("-m", "hpcexp", "train", "-m", f"seed={','.join(str(seed) for seed in range(1, JOBS + 1))}"),
    *("trainer.max_steps=1", "tracking=off", "hardware=cpu", "hardware.threads_per_rank=1"),
    "callbacks.meter._target_=benchmarks.meter.Meter",
    "callbacks.stopwatch._target_=benchmarks.stopwatch.Stopwatch",
)


@dataclass(frozen=True)
class Sweep:
    """Seconds of one sweep."""

    rank: float
    """CPU time of a rank until its first step is done."""
    waited: float
    """Wall-clock time from the beginning of a job until then."""
    job: float
    """CPU time of everything, divided by the jobs."""


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    taken = interleaved({isolation: partial(sweep, isolation, scratch) for isolation in ("warm", "process")}, pairs)
    warm, cold = taken["warm"], taken["process"]
    return [
        Row("CPU time of a rank until its first step, warm / cold", _each(warm, "rank"), _each(cold, "rank"), GOAL),
        Row("time from a job's beginning to its first step, warm / cold", _each(warm, "waited"), _each(cold, "waited")),
        Row(f"CPU time of a sweep of {JOBS}, a job, warm / cold", _each(warm, "job"), _each(cold, "job")),
    ]


def sweep(isolation: str, scratch: Path) -> Sweep:
    """Run it in a new directory."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        seconds = cpu_seconds_of_all([*SWEEP, f"launch.isolation={isolation}"], Path(directory))
        runs = [*find_runs(Path(directory, "runs"))]
        ranks = [json.loads((run.path / METER_FILE).read_text())["until_first_step_s"] for run in runs]
        waited = [read(run.path)[0] - json.loads(run.status.read_text())["started"] for run in runs]
    assert len(ranks) == JOBS
    waited.remove(max(waited))
    return Sweep(statistics.median(ranks), statistics.median(waited), seconds / JOBS)


def _each(sweeps: Sequence[Sweep], what: str) -> list[float]:
    return [getattr(one, what) for one in sweeps]
