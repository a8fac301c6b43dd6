"""A sweep that drivers on several machines work on: what a dead one or one that slept leaves to the others."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from helpers import ended, wait_until
from hosts import NEEDS_HOSTS, hosts, lose_power, start_on  # noqa: F401 - a fixture
from test_sweep import SHORT, begun, only_sweep, opened, paced, states  # noqa: F401 - a fixture

from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.records.status import read_status

pytestmark = [pytest.mark.slow, NEEDS_HOSTS, pytest.mark.usefixtures("hosts")]

ASKED = ("train", "-m", "model=paced", "model.gate=1,2", "launch.max_jobs=1", "launch.beat_timeout_s=5", *SHORT)


def driver(host: str, project: Path, *more: str) -> subprocess.Popen[str]:
    return start_on(host, project, *ASKED, *more)


def at_work(project: Path, *names: str) -> bool:
    """Whether each of the hosts has one job."""
    runs = [read_status(run) for run in find_runs(project / "runs")]
    return sorted(names) == sorted(str(status.host) for status in runs if status.state == "running")


def run_of(project: Path, host: str) -> RunDir:
    [run] = [run for run in find_runs(project / "runs") if read_status(run).host == host]
    return run


def test_a_sweep_outlives_a_machine(paced: Path) -> None:  # noqa: F811
    """The other driver does what the dead one had begun, once, and ends."""
    dying = driver("ada", paced)
    wait_until(lambda: at_work(paced, "ada"), "a job on ada")
    other = driver("bob", paced)
    wait_until(lambda: at_work(paced, "ada", "bob"), "a job on each")
    lose_power(dying)
    opened(paced, 1, 2)
    said = ended(other)
    assert 0 == said.status, said
    assert "Working together with process" in said.out
    assert ["finished", "finished"] == states(paced)
    assert {"bob"} == {read_status(run).host for run in find_runs(paced / "runs")}
    assert 2 == begun(said)
    assert "finished" == read_status(only_sweep(paced)).state
    assert not list((only_sweep(paced).path / "claims").iterdir())


def test_a_driver_that_slept_gives_up_what_was_taken(paced: Path) -> None:  # noqa: F811
    """It ends its ranks without a word in the run's directory, and counts the job once the other has done it."""
    opened(paced, 2)
    asleep = driver("ada", paced, "launch.isolation=process")
    wait_until(lambda: at_work(paced, "ada") and _ranks_of(asleep), "a job on ada")
    lost, [rank] = run_of(paced, "ada"), _ranks_of(asleep)
    asleep.send_signal(signal.SIGSTOP)
    other = driver("bob", paced)
    wait_until(lambda: read_status(lost).host == "bob", "bob has ada's job")
    before = read_status(lost)
    assert rank.is_running()
    asleep.send_signal(signal.SIGCONT)
    wait_until(lambda: not rank.is_running(), "no rank of ada is left")
    assert before == read_status(lost)
    opened(paced, 1)
    woken, said = ended(asleep), ended(other)
    assert (0, 0) == (woken.status, said.status), (woken, said)
    assert "taken over by another driver" in woken.out
    assert ["finished", "finished"] == states(paced)


def _ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "hpcexp.job" in p.cmdline()]
