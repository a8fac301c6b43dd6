"""Of two processes that sync the same, the second waits and says so. A damaged record stops only itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import Said, start
from record_support import (
    REPOSITORY,
    end_sweep,
    finish,
    make_run,
    make_sweep,
    query,
    told_of,
    wait_until,
)

from hpcexp.files.documents import read_plain
from hpcexp.rundir import RecordDir, RunDir, SweepDir, find_runs
from hpcexp.runs.records.sync import read_sync_record

mlflows_sqlalchemy = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")
HOLD = """
import sys
from pathlib import Path
from hpcexp.files.locks import held
with held(Path(sys.argv[1]), "held by"):
    print("held", flush=True)
    input()
"""


@contextmanager
def syncing(record: RecordDir) -> Iterator[subprocess.Popen[str]]:
    """Another process that syncs a directory until it gets a line."""
    command = [sys.executable, "-c", HOLD, str(record.sync_lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert 0 == process.wait(30)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def finished_run(root: Path, uri: str, name: str) -> RunDir:
    run = make_run(root, uri, name=name, steps=3)
    finish(run)
    return run


def test_sync_waits_for_a_process_that_syncs_already(tmp_path: Path, uri: str) -> None:
    """It names that process, and syncs when it has ended."""
    run = finished_run(tmp_path / "runs", uri, "busy")
    with syncing(run) as other:
        sync = start("sync", cwd=tmp_path)
        assert sync.stderr is not None
        line = sync.stderr.readline()
        assert f"busy is being synced by process {other.pid} on " in line
        assert ": waiting for it (Ctrl-C leaves it to that process)." in line
        assert not read_sync_record(run).synced
        let_go(other)
    out, err = sync.communicate(timeout=120)
    assert (0, "1 of 1 ended runs are in MLflow or need not be.\n", "") == (sync.returncode, out, err)
    assert read_sync_record(run).synced


def test_a_second_sync_process_waits_for_what_another_process_syncs(tmp_path: Path, uri: str) -> None:
    """And syncs what that one has left, with status 0: nothing is missing."""
    sweep = make_sweep(tmp_path / "runs", "both")
    run = finished_run(tmp_path / "runs", uri, "both-1")
    end_sweep(sweep, best=run)
    with syncing(run) as other:
        command = [sys.executable, "-m", "hpcexp.tracking.sync.sweep_process", str(sweep.path)]
        sync_process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY)
        assert sync_process.stdin is not None
        sync_process.stdin.write(
            "".join(json.dumps(line) + "\n" for line in (told_of(run, seed="1"), {"end": True})).encode()
        )
        sync_process.stdin.close()
        log = sweep.logs / "sync.log"
        wait_until(
            lambda: log.exists() and "is being synced by process" in log.read_text(), "the sync process finds it held"
        )
        assert sync_process.poll() is None
        let_go(other)
    assert 0 == sync_process.wait(120)
    assert read_sync_record(run).synced


@mlflows_sqlalchemy
@pytest.mark.parametrize("damage", ["{", "[]", '{"run_id": 3}', '{"offset": -1}'])
def test_the_damaged_record_of_a_sweep_stops_none_of_its_runs(
    hpcexp: Callable[..., Said], project: Path, damage: str
) -> None:
    """They are synced without it; it is named, and its MLflow run is not made a second time."""
    uri = f"sqlite:///{project / 'runs' / 'mlflow.db'}"
    sweep = make_sweep(project / "runs", "lr")
    runs = [finished_run(project / "runs", uri, f"lr-{i}") for i in (1, 2)]
    lines = [
        {"job": i, "overrides": [f"seed={i}"], "signature": "a", "run": str(r.path)} for i, r in enumerate(runs, 1)
    ]
    sweep.jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    end_sweep(sweep, best=runs[0])
    assert 0 == hpcexp("sync", str(runs[0].path)).status
    whole = sweep.mlflow.read_text()
    sweep.mlflow.write_text(damage)
    said = hpcexp("sync")
    assert 1 == said.status
    assert f"sweeps/lr: {sweep.mlflow} is damaged: " in said.out
    assert "2 of 2 ended runs are in MLflow" in said.out
    assert all(read_sync_record(run).synced for run in runs)
    parents = "SELECT count(*) FROM runs WHERE name = 'lr'"
    assert [(1,)] == query(project / "runs" / "mlflow.db", parents)
    sweep.mlflow.write_text(whole)
    assert 0 == hpcexp("sync").status
    assert [(1,)] == query(project / "runs" / "mlflow.db", parents)
    tags = "SELECT DISTINCT value FROM tags WHERE key = 'mlflow.parentRunId'"
    assert [(read_plain(sweep.mlflow)["run_id"],)] == query(project / "runs" / "mlflow.db", tags)
    assert 0 == hpcexp("sweep", "last", "--status").status


@mlflows_sqlalchemy
def test_a_sweep_with_a_damaged_record_is_ranked_and_its_runs_synced(
    hpcexp: Callable[..., Said], project: Path
) -> None:
    """While it runs, too: what could not be synced is named at its end."""
    asked = ["train", "-m", "seed=1,2", "trainer.max_epochs=1", "run.pictures=false", "launch.progress=none"]
    assert 0 == hpcexp(*asked, "tracking=off").status
    [sweep] = map(SweepDir, (project / "runs" / "sweeps").iterdir())
    for damaged in (sweep.mlflow, sweep.status):
        damaged.write_text("[]")
        said = hpcexp(*asked, "--fresh")
        assert 0 == said.status, said.err
        assert "2 jobs: 2 finished" in said.out
        assert ("MLflow lacks some of it" in said.out) == (damaged == sweep.mlflow)
        runs = [run for run in find_runs(project / "runs") if "~" not in run.path.name]
        assert [True, True] == [read_sync_record(run).synced for run in runs]
        damaged.unlink(missing_ok=True)
