"""The driver's end of the sync process: it never waits for it, and survives its death."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from record_support import end_sweep, finish, free_port, make_run, make_sweep, query, wait_until

from hpcexp.cli.sync import sync
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.launch.supervisor import uploader
from hpcexp.launch.supervisor.uploader import SweepUploader, start_sync
from hpcexp.rundir import RecordDir, RunDir

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs whose database is made once for all tests of this file."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def uri(root: Path) -> str:
    """Of its database."""
    return f"sqlite:///{root / 'mlflow.db'}"


def noted(record: RecordDir, key: str) -> Any:
    """An entry of `mlflow.json`."""
    return read_plain(record.mlflow).get(key)


def finished_run(root: Path, uri: str, name: str) -> RunDir:
    """A run that went well."""
    run = make_run(root, uri, name=name, steps=5)
    finish(run)
    return run


def process_of(sync_process: SweepUploader) -> subprocess.Popen[bytes]:
    """What is behind it."""
    assert sync_process._process is not None
    return sync_process._process


def test_a_sync_process_that_dies_is_started_again(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And told of all runs, of those too that the dead one had not synced."""
    monkeypatch.setattr(uploader, "_RESTART_S", 0.0)
    sweep = make_sweep(root, "restarted")
    running, first = make_run(root, uri, name="restarted-0", steps=5), finished_run(root, uri, "restarted-1")
    sync_process = SweepUploader(sweep.path)
    sync_process.add(running, {"seed": "0"})
    sync_process.add(first, {"seed": "1"})
    wait_until(lambda: noted(first, "pictured") and noted(running, "offset"), "the first runs are synced")
    process_of(sync_process).kill()
    second = finished_run(root, uri, "restarted-2")
    finish(running)
    wait_until(lambda: sync_process._is_dead, "it is dead")
    sync_process.add(second, {"seed": "2"})
    end_sweep(sweep, best=first)
    sync_process.close(60.0, is_tracked=True)
    assert [noted(record, "synced") for record in (sweep, running, first, second)] == [True] * 4
    assert query(root / "mlflow.db", "SELECT count(*) FROM runs WHERE name LIKE 'restarted%'") == [(4,)]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel shares nothing out by session")
def test_a_sync_process_leaves_the_cores_to_the_training(root: Path, uri: str) -> None:
    """By the niceness of its session: ranks lead others, against which its own counts for nothing."""
    run = make_run(root, uri, name="nice", steps=5)
    sync_process = start_sync(run)
    wait_until(lambda: noted(run, "offset"), "the first metrics are synced")
    assert 10 == psutil.Process(sync_process.pid).nice()
    assert Path(f"/proc/{sync_process.pid}/autogroup").read_text().endswith(" nice 10\n")
    finish(run)
    sync_process.communicate(timeout=60)
    assert 0 == sync_process.returncode


def test_a_driver_never_waits_for_its_sync_process(root: Path, uri: str) -> None:
    """Not even where that stands still and the pipe is full; Ctrl-C at the end leaves it alone with the rest."""
    sweep = make_sweep(root, "stopped")
    run = finished_run(root, uri, "stopped-1")
    sync_process = SweepUploader(sweep.path)
    sync_process.add(run, {"seed": "1"})
    process_of(sync_process).send_signal(signal.SIGSTOP)
    for _ in range(2000):
        sync_process.add(run, {"seed": "1"})
    assert sync_process._unsent
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    sync_process.close(600.0, is_tracked=True)
    assert time.monotonic() - began < 300.0
    process_of(sync_process).send_signal(signal.SIGCONT)
    assert process_of(sync_process).wait(60) == 0
    assert noted(run, "pictured")


def test_what_a_sync_process_could_not_sync_is_said_and_synced(
    root: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason. `hpcexp sync` syncs runs, and the sweep that they belong to."""
    place = root / "elsewhere"
    sweep = make_sweep(place, "unsynced")
    dead = f"http://127.0.0.1:{free_port()}"
    run = make_run(place, dead, steps=5, wait_s=1.0)
    finish(run)
    sync_process = SweepUploader(sweep.path)
    sync_process.add(run, {"optimizer.lr": "0.1"})
    end_sweep(sweep, best=run)
    sync_process.close(60.0, is_tracked=True)
    assert f"MLflow lacks some of it ({dead}: Connection refused): `hpcexp sync` sends it." in capsys.readouterr().out
    process_of(sync_process).wait(60)  # on a busy machine it is not waited for where no server answers
    assert sync(["--root", str(place)]) == 1
    assert f"sweeps/unsynced: {dead}: Connection refused" in capsys.readouterr().out
    run.plan.write_text(run.plan.read_text().replace(dead, uri))
    write_json(sweep.mlflow, {**read_plain(sweep.mlflow), "tracking_uri": uri})
    for _ in range(2):
        assert sync(["--root", str(place)]) == 0
        told = [f"1 of 1 ended {what} are in MLflow or need not be." for what in ("sweeps", "runs")]
        assert capsys.readouterr().out.splitlines() == told
    parent = query(root / "mlflow.db", "SELECT value FROM tags WHERE key = 'mlflow.parentRunId'")
    assert (noted(sweep, "run_id"),) in parent


def test_sync_takes_from_the_ledger_what_no_sync_process_was_told(
    root: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep whose driver and sync process died at once."""
    place = root / "another"
    sweep = make_sweep(place, "untold")
    run = finished_run(place, uri, "untold-1")
    sweep.jobs.write_text(
        f'{{"job": 1, "overrides": ["optimizer.lr=0.1"], "signature": "a", "run": "{run.path}", "t": 1}}\n'
    )
    write_json(sweep.status, {**read_plain(sweep.status), "pid": 2**22 + 1})
    assert sync(["--root", str(place)]) == 0
    assert "2 of 2" not in capsys.readouterr().out
    assert read_plain(sweep.status)["state"] == "killed"
    tags = dict(query(root / "mlflow.db", "SELECT key, value FROM tags WHERE run_uuid = ?", noted(run, "run_id")))
    assert tags["mlflow.parentRunId"] == noted(sweep, "run_id")
    assert (tags["hpcexp.sweep"], tags["axis.optimizer.lr"]) == ("untold", "0.1")
