"""Lists of runs, read from their directories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from record_support import finish, make_run, set_state

from hpcexp.rundir import RunDir
from hpcexp.status.listing import list_runs, read_row


def dead_pid() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_finished_run_shows_what_it_reached(tmp_path: Path) -> None:
    """Identity, duration and test metrics."""
    run = make_run(tmp_path, None)
    finish(run)
    row = read_row(run)
    assert (row.experiment, row.name, row.signature, row.state) == ("digits_mlp", "lr=0.01", "a1b2c3d4", "finished")
    assert row.duration_s == pytest.approx(60.0)
    assert row.metrics == {"test/acc": 0.985, "test/loss": 0.06}


def test_a_run_under_way_shows_its_time_so_far(tmp_path: Path) -> None:
    """Its supervisor lives: this process."""
    row = read_row(make_run(tmp_path, None))
    assert row.state == "running"
    assert row.duration_s is not None
    assert row.duration_s >= 0


def test_a_run_whose_supervisor_is_gone_counts_as_killed(tmp_path: Path) -> None:
    """A machine that lost power leaves `running` behind."""
    run = make_run(tmp_path, None)
    set_state(run, "running", pid=dead_pid())
    assert read_row(run).state == "killed"


def test_a_later_process_with_the_same_number_is_not_the_supervisor(tmp_path: Path) -> None:
    """It started at another tick of the machine."""
    run = make_run(tmp_path, None)
    set_state(run, "running", pid=os.getpid())
    assert read_row(run).state == "killed"


def test_a_frozen_plan_that_never_started_is_planned(tmp_path: Path) -> None:
    """`launch=dry` leaves a plan and no status."""
    run = make_run(tmp_path, None)
    run.status.unlink()
    row = read_row(run)
    assert (row.state, row.started, row.duration_s) == ("planned", None, None)


def test_the_latest_run_stands_last(tmp_path: Path) -> None:
    """Where the prompt is."""
    old, new = make_run(tmp_path, None, name="b"), make_run(tmp_path, None, name="a")
    set_state(old, "finished", pid=1)
    finish(new)
    assert [row.path for row in list_runs(tmp_path)[0]] == [RunDir(old.path).path, new.path]
