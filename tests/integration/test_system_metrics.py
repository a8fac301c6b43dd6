"""What a job takes of its machine: sampled while it trains, and in MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import LEAN, Said, only_run
from record_support import query
from training_plans import digits_plan

from hpcexp.launch.supervisor.system_metrics import SystemMetrics
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points

EVERY_S = 0.1


def watched(run: RunDir, plan_dir: Path, samples: int, every_s: float | None = EVERY_S) -> None:
    """Have this process, which is busy, looked at."""
    vitals = SystemMetrics(run, digits_plan(plan_dir).topology, every_s)
    before = len(read_points(run.system)[0])
    until = time.monotonic() + 20
    while len(read_points(run.system)[0]) < before + samples and time.monotonic() < until:
        sum(i * i for i in range(20_000))
        vitals.look([os.getpid()])
        if every_s is None:
            break
    vitals.close()


def test_a_busy_process_is_seen_to_be_busy(tmp_path: Path) -> None:
    """Its CPU time is that of a core, less what others take; its memory is what the kernel says."""
    run = RunDir(tmp_path)
    watched(run, tmp_path, 5)
    points, _ = read_points(run.system)
    busiest = max(point.metrics["system/job_cpu_percentage"] for point in points)
    assert 20 < busiest < 150
    for point in points:
        assert 0 <= point.metrics["system/cpu_utilization_percentage"] <= 100
        assert 0 < point.metrics["system/system_memory_usage_percentage"] < 100
        assert point.metrics["system/network_receive_megabytes_per_second"] >= 0
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert points[-1].metrics["system/job_memory_megabytes"] > 0.8 * resident  # the children of this process count too


def test_a_run_that_goes_on_counts_its_samples_on(tmp_path: Path) -> None:
    """MLflow draws them by their number."""
    run = RunDir(tmp_path)
    watched(run, tmp_path, 2)
    watched(run, tmp_path, 2)
    assert [0, 1, 2, 3] == [point.step for point in read_points(run.system)[0]]


def test_nothing_is_looked_at_where_nobody_asks(tmp_path: Path) -> None:
    watched(RunDir(tmp_path), tmp_path, 1, every_s=None)
    assert not RunDir(tmp_path).system.exists()


@pytest.mark.slow
def test_samples_of_a_training_are_in_mlflow_once(train: Callable[..., Said], project: Path) -> None:
    """Under names that MLflow shows on a page of its own."""
    asked = ("trainer.max_epochs=150", "trainer.val_every_epochs=50", "tracking.system_every_s=0.2", *LEAN)
    assert 0 == train(*asked).status
    points, _ = read_points(only_run(project).system)
    assert points
    told = "SELECT step, value FROM metrics WHERE key = 'system/job_cpu_percentage' ORDER BY step"
    name = "system/job_cpu_percentage"  # left out where a rank has ended since the sample before
    expected = [(point.step, point.metrics[name]) for point in points if name in point.metrics]
    assert expected
    assert expected == query(project / "runs" / "mlflow.db", told)
