"""One process syncs all runs of a sweep, below the sweep's own MLflow run; whatever one of them does to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from record_support import (
    REPOSITORY,
    end_sweep,
    finish,
    free_port,
    in_mlflow,
    journalled,
    kill_group,
    make_run,
    make_sweep,
    mlflow_client,
    mlflow_server,
    noted,
    query,
    set_state,
    stored,
    told_of,
    wait_until,
    write_steps,
)

from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run_process import sync, sync_sweep
from hpcexp.tracking.sync.sweep_process import Inbox, SweepSyncProcess

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


@pytest.fixture(autouse=True)
def _stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync process changes the working directory of its process."""
    monkeypatch.chdir(Path.cwd())


def synced(sweep: SweepDir, *told: dict[str, Any], ends: bool = True) -> int:
    """Exit status of a sync process that receives these messages before its driver leaves; runs in this process."""
    read, write = os.pipe()
    lines = [*told, *([{"end": True}] if ends else [])]
    os.write(write, "".join(json.dumps(line) + "\n" for line in lines).encode())
    os.close(write)
    try:
        return SweepSyncProcess(sweep, Inbox(read, sweep)).run()
    finally:
        os.close(read)


def finished_run(root: Path, uri: str | None, name: str, steps: int = 5, **tracking: Any) -> RunDir:
    """A run that went well."""
    run = make_run(root, uri, name=name, steps=steps, **tracking)
    finish(run)
    return run


@contextmanager
def sync_process(sweep: SweepDir) -> Iterator[subprocess.Popen[bytes]]:
    """The real process, with the pipe that the driver gives it; killed if it is still there afterwards."""
    command = [sys.executable, "-m", "hpcexp.tracking.sync.sweep_process", str(sweep.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, cwd=REPOSITORY) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes], *told: dict[str, Any]) -> None:
    """As a driver does."""
    assert process.stdin is not None
    for line in told:
        process.stdin.write(json.dumps(line).encode() + b"\n")


def test_a_sweep_is_one_run_above_those_of_its_jobs(root: Path, uri: str, database: Path) -> None:
    """With its question, axes, answer and table; the jobs found by their values without typing."""
    sweep = make_sweep(root, "whole")
    runs = [finished_run(root, uri, f"whole-{lr}") for lr in ("0.1", "0.01")]
    end_sweep(sweep, best=runs[0])
    assert synced(sweep, *(told_of(r, optimizer__lr=r.path.name[6:]) for r in runs)) == 0
    parent = in_mlflow(uri, sweep)
    assert (parent.info.run_name, parent.info.status) == ("whole", "FINISHED")
    assert parent.data.params == {"optimizer.lr": "0.1, 0.01", "model.width": "16 … 64 (log)"}
    assert parent.data.metrics == {"best/val/acc": 0.97, "jobs/finished": 1.0, "jobs/failed": 1.0}
    expected = {"hpcexp.sweep": "whole", "mlflow.user": "ada", "mlflow.source.name": "hpcexp sweep whole"}
    assert expected.items() <= parent.data.tags.items()
    best = f"[whole-0.1](#/experiments/{noted(runs[0], 'experiment_id')}/runs/{noted(runs[0], 'run_id')}?"
    for words in ("Which rate learns fastest?", "- `optimizer.lr`: 0.1, 0.01", best, "| 1 | 0.1 | 0.97 |"):
        assert words in parent.data.tags["mlflow.note.content"]
    files = {
        f.path for folder in (None, "plots") for f in mlflow_client(uri).list_artifacts(parent.info.run_id, folder)
    }
    assert {"sweep.json", "table.csv", "table.md", "best.json", "plots/axes.png"} <= files
    found = mlflow_client(uri).search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert {run.info.run_name: run.data.tags["axis.optimizer.lr"] for run in found} == {
        "whole-0.1": "0.1",
        "whole-0.01": "0.01",
    }
    for run in runs:
        assert stored(database, noted(run, "run_id")) == journalled(run)
        assert (noted(run, "synced"), noted(run, "pictured")) == (True, True)
        assert (run.plots / "loss.png").exists()


def test_syncing_a_sweep_again_changes_nothing(root: Path, uri: str, database: Path) -> None:
    """By another sync process, or by `sync`."""
    sweep = make_sweep(root, "again")
    run = finished_run(root, uri, "again-1")
    end_sweep(sweep, best=run)
    assert synced(sweep, told_of(run, optimizer__lr="0.1")) == 0
    before = query(database, "SELECT * FROM runs ORDER BY run_uuid"), run.mlflow.read_text(), sweep.mlflow.read_text()
    assert synced(sweep, told_of(run, optimizer__lr="0.1")) == 0
    assert (sync(run.path), sync_sweep(sweep.path, Stores())) == (None, None)
    after = query(database, "SELECT * FROM runs ORDER BY run_uuid"), run.mlflow.read_text(), sweep.mlflow.read_text()
    assert after == before


def test_a_sweep_that_goes_on_keeps_its_run(root: Path, uri: str, database: Path) -> None:
    """RUNNING again meanwhile; its axes may have been edited, and a killed driver's run is found by its token."""
    sweep = make_sweep(root, "longer")
    first, second = (finished_run(root, uri, f"longer-{i}") for i in (1, 2))
    set_state(sweep, "killed")
    assert synced(sweep, told_of(first, optimizer__lr="0.1")) == 0
    run_id = noted(sweep, "run_id")
    assert in_mlflow(uri, sweep).info.status == "KILLED"
    set_state(sweep, "running")
    write_json(
        sweep.definition,
        {**read_plain(sweep.definition), "axes": {"optimizer.lr": {"values": ["1"]}, "seed": {"values": ["1", "2"]}}},
    )
    write_json(sweep.mlflow, {k: v for k, v in read_plain(sweep.mlflow).items() if k != "run_id"})
    told = [told_of(run, optimizer__lr="0.1") for run in (first, second)]
    assert synced(sweep, *told) == 0
    assert (noted(sweep, "run_id"), in_mlflow(uri, sweep).info.status) == (run_id, "RUNNING")
    end_sweep(sweep, best=second)
    assert synced(sweep, *told) == 0
    made = in_mlflow(uri, sweep)
    assert (made.info.run_id, made.info.status) == (run_id, "FINISHED")
    assert made.data.params["optimizer.lr"] == "0.1, 0.01"  # MLflow changes no parameter
    assert made.data.params["seed"] == "1, 2"
    assert "- `optimizer.lr`: 1\n" in made.data.tags["mlflow.note.content"]
    assert query(database, "SELECT count(*) FROM runs WHERE name = 'longer'") == [(1,)]
    assert {noted(run, "parent") for run in (first, second)} == {run_id}


def test_a_finished_run_is_put_below_the_sweep_that_it_comes_to_belong_to(root: Path, uri: str) -> None:
    """Nothing else of it is synced again; `sync` leaves it there."""
    run = finished_run(root, uri, "joins")
    assert sync(run.path) is None
    before = in_mlflow(uri, run)
    assert "mlflow.parentRunId" not in before.data.tags
    sweep = make_sweep(root, "joined")
    assert synced(sweep, told_of(run, optimizer__lr="0.1")) == 0
    after = in_mlflow(uri, run)
    news = {"mlflow.parentRunId": noted(sweep, "run_id"), "hpcexp.sweep": "joined", "axis.optimizer.lr": "0.1"}
    note = after.data.tags["mlflow.note.content"]
    assert f"**Sweep:** [joined](#/experiments/{noted(sweep, 'experiment_id')}/runs/{noted(sweep, 'run_id')}?" in note
    assert after.data.tags == {**before.data.tags, **news, "mlflow.note.content": note}
    assert after.info == before.info
    assert sync(run.path) is None
    assert in_mlflow(uri, run).data.tags == after.data.tags


def test_a_sweep_deleted_in_mlflow_is_made_anew_above_its_runs(root: Path, uri: str) -> None:
    """Also above those that this sync process was not told of."""
    sweep = make_sweep(root, "deleted")
    first, second = (finished_run(root, uri, f"deleted-{i}") for i in (1, 2))
    ledger = [
        {"job": i, "overrides": [f"seed={i}"], "signature": "a", "run": str(r.path), "t": 1}
        for i, r in enumerate((first, second), 1)
    ]
    sweep.jobs.write_text("".join(json.dumps(entry) + "\n" for entry in ledger) + '{"job": 3, "as')
    assert synced(sweep, told_of(first, seed="1"), told_of(second, seed="2")) == 0
    gone = noted(sweep, "run_id")
    mlflow_client(uri).delete_run(gone)
    assert synced(sweep, told_of(first, seed="1")) == 0
    parent = noted(sweep, "run_id")
    assert parent != gone
    assert [in_mlflow(uri, run).data.tags["mlflow.parentRunId"] for run in (first, second)] == [parent, parent]


def test_a_run_deleted_in_mlflow_comes_back_below_its_sweep(root: Path, uri: str, database: Path) -> None:
    """With its whole journal."""
    sweep = make_sweep(root, "lost-child")
    run = make_run(root, uri, name="lost-child-1", steps=5)
    with sync_process(sweep) as process:
        tell(process, told_of(run, seed="1"))
        wait_until(lambda: noted(run, "offset"), "the first metrics are synced")
        gone = noted(run, "run_id")
        mlflow_client(uri).delete_run(gone)
        write_steps(run, 5, first=6)
        finish(run)
        tell(process, {"end": True})
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(60) == 0
    assert noted(run, "run_id") != gone
    assert stored(database, noted(run, "run_id")) == journalled(run)
    assert in_mlflow(uri, run).data.tags["mlflow.parentRunId"] == noted(sweep, "run_id")


def test_a_run_that_cannot_be_synced_costs_the_others_nothing(root: Path, uri: str, database: Path) -> None:
    """A directory that is not there, one without or with a damaged plan, a deleted experiment, nonsense."""
    sweep = make_sweep(root, "mixed")
    good = [finished_run(root, uri, f"good-{i}") for i in range(3)]
    damaged, refused = (finished_run(root, uri, name) for name in ("damaged", "refused"))
    damaged.plan.write_text("- no plan")
    made = mlflow_client(uri).create_experiment("deleted-one")
    mlflow_client(uri).delete_experiment(made)
    refused.plan.write_text(
        refused.plan.read_text().replace("experiment: digits_mlp\n    tags", "experiment: deleted-one\n    tags")
    )
    (root / "digits_mlp" / "planless").mkdir()
    bad = [root / "nowhere", root / "digits_mlp" / "planless", damaged.path, refused.path]
    told = [{"run": str(path), "axes": {}} for path in bad] + [told_of(run, seed="1") for run in good]
    assert synced(sweep, {"nonsense": 1}, *told) == 1
    for run in good:
        assert noted(run, "synced")
        assert stored(database, noted(run, "run_id")) == journalled(run)
    assert "was deleted" in noted(refused, "problem")


def test_a_run_is_followed_whatever_becomes_of_its_path(root: Path, uri: str, database: Path) -> None:
    """Set aside for a new try, which is a run of its own; or removed."""
    sweep = make_sweep(root, "aside")
    first, removed = (make_run(root, uri, name=name, steps=5) for name in ("tried", "removed"))
    with sync_process(sweep) as process:
        tell(process, told_of(first), told_of(removed))
        wait_until(lambda: noted(first, "offset") and noted(removed, "offset"), "the first metrics are synced")
        shutil.rmtree(removed.path)
        aside = RunDir(first.path.rename(first.path.with_name("tried~1")))
        again = finished_run(root, uri, "tried", steps=7)
        tell(process, told_of(again))
        finish(aside)
        wait_until(lambda: noted(again, "pictured") and noted(aside, "pictured"), "both are synced")
        tell(process, {"end": True})
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(60) == 0
    assert noted(aside, "run_id") != noted(again, "run_id")
    for run in (aside, again):
        assert stored(database, noted(run, "run_id")) == journalled(run)
    assert not removed.path.exists()


WRITE = """
import sys
from pathlib import Path
from record_support import write_steps
from hpcexp.rundir import RunDir

stop, *paths = map(Path, sys.argv[1:])
step = 2
while not stop.exists():
    for path in paths:
        write_steps(RunDir(path), 1, first=step)
    step += 1
"""


def test_a_sync_process_killed_on_its_way_loses_and_doubles_nothing(root: Path, uri: str, database: Path) -> None:
    """Runs that are written meanwhile by processes of their own; then another sync process, then `sync`, twice."""
    sweep = make_sweep(root, "killed")
    runs = [make_run(root, uri, name=f"killed-{i}", steps=1, model="never") for i in range(8)]
    told = [told_of(run, seed="1") for run in runs]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    paths = [[sweep.path / "stop", *(run.path for run in runs[i::2])] for i in range(2)]
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, *map(str, some)], env=environment) for some in paths]
    with sync_process(sweep) as process:
        tell(process, *told)
        wait_until(lambda: all(noted(run, "offset") for run in runs), "the first metrics are synced")
    (sweep.path / "stop").touch()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    for run in runs:
        assert noted(run, "offset") < run.journal.stat().st_size
        set_state(run, "finished")
    end_sweep(sweep, best=runs[0])
    assert synced(sweep, *told) == 0
    for _ in range(2):
        assert [sync(run.path) for run in runs] == [None] * 8
        assert [stored(database, noted(run, "run_id")) for run in runs] == [journalled(run) for run in runs]
    assert query(database, "SELECT count(*) FROM runs WHERE name LIKE 'killed-%'") == [(8,)]
    assert query(database, "SELECT count(*) FROM runs WHERE name = 'killed'") == [(1,)]


def test_a_driver_that_dies_leaves_its_sweep_and_its_runs_killed(root: Path, uri: str) -> None:
    """Unless another driver is at work on the sweep."""
    sweep, shared = make_sweep(root, "orphaned"), make_sweep(root, "shared")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as driver:
        run = make_run(root, uri, name="orphaned-1", steps=5)
        for record in (run, sweep, shared):
            write_json(record.status, {**read_plain(record.status), "pid": driver.pid})
        driver.kill()
    (shared.path / "drivers").mkdir()
    write_json(shared.path / "drivers" / "a.json", {"pid": os.getpid(), "host": socket.gethostname()})
    assert synced(sweep, told_of(run, seed="1"), ends=False) == 0
    assert (read_plain(run.status)["state"], read_plain(sweep.status)["state"]) == ("killed", "killed")
    assert (in_mlflow(uri, run).info.status, in_mlflow(uri, sweep).info.status) == ("KILLED", "KILLED")
    assert synced(shared, told_of(run, seed="1"), ends=True) == 0
    assert (read_plain(shared.status)["state"], in_mlflow(uri, shared).info.status) == ("running", "RUNNING")


def test_a_dead_server_holds_up_nothing_else(root: Path, uri: str, database: Path, capfd: Any) -> None:
    """Runs for another store arrive; those for the dead one get their pictures, and `sync` can sync them later."""
    sweep = make_sweep(root, "half-dead")
    dead = f"http://127.0.0.1:{free_port()}"
    lost = [finished_run(root, dead, f"lost-{i}", wait_s=0.0) for i in range(3)]
    good = [finished_run(root, uri, f"arrived-{i}", wait_s=0.0) for i in range(3)]
    end_sweep(sweep, best=good[0])
    pairs = [run for pair in zip(lost, good, strict=True) for run in pair]
    assert synced(sweep, *(told_of(run, seed="1") for run in pairs)) == 1
    assert [stored(database, noted(run, "run_id")) for run in good] == [journalled(run) for run in good]
    assert all((run.plots / "loss.png").exists() for run in lost)
    assert [noted(record, "problem") for record in (sweep, *lost)] == [f"{dead}: Connection refused"] * 4
    assert "left to `hpcexp sync`: lost-0" in capfd.readouterr().err
    # The store of the dead server's runs is here now.
    for run in lost:
        run.plan.write_text(run.plan.read_text().replace(dead, uri))
    write_json(sweep.mlflow, {**read_plain(sweep.mlflow), "tracking_uri": uri})
    assert sync_sweep(sweep.path, Stores()) is None
    assert [sync(run.path) for run in lost] == [None] * 3
    assert in_mlflow(uri, sweep).info.status == "FINISHED"
    assert {in_mlflow(uri, run).data.tags["mlflow.parentRunId"] for run in lost} == {noted(sweep, "run_id")}


def test_a_sweep_without_tracking_gets_its_pictures(root: Path) -> None:
    """`tracking.enabled=false`."""
    sweep = make_sweep(root, "untracked")
    run = finished_run(root, None, "untracked-1", steps=30)
    assert synced(sweep, told_of(run, seed="1")) == 0
    assert (run.plots / "loss.png").exists()
    assert not run.mlflow.exists()
    assert not sweep.mlflow.exists()


def test_runs_are_synced_where_the_directory_of_their_sweep_is_gone(root: Path, uri: str, capfd: Any) -> None:
    """Below nothing, and that is said."""
    sweep = make_sweep(root, "removed-sweep")
    run = finished_run(root, uri, "bereft")
    shutil.rmtree(sweep.path)
    assert synced(sweep, told_of(run, seed="1")) == 0
    tags = in_mlflow(uri, run).data.tags
    assert (tags["hpcexp.sweep"], tags["axis.seed"]) == ("removed-sweep", "1")
    assert "mlflow.parentRunId" not in tags
    assert "sweep removed-sweep: " in capfd.readouterr().err
    assert not sweep.path.exists()


def test_a_server_that_dies_and_comes_back_has_every_run_once(tmp_path: Path) -> None:
    """Killed while runs are followed, and back while the driver is still there."""
    with mlflow_server(tmp_path) as (port, start):
        first = start()
        sweep = make_sweep(tmp_path, "served")
        uri = f"http://127.0.0.1:{port}"
        runs = [make_run(tmp_path, uri, name=f"served-{i}", steps=50, wait_s=90.0) for i in range(3)]
        with sync_process(sweep) as process:
            tell(process, *(told_of(run, seed="1") for run in runs))
            wait_until(lambda: all(noted(run, "offset") for run in runs), "the first metrics are synced")
            kill_group(first)
            for run in runs:
                write_steps(run, 50, first=51)
                finish(run)
            wait_until(lambda: any(noted(run, "problem") for run in runs), "the server is missed")
            start()
            end_sweep(sweep, best=runs[0])
            tell(process, {"end": True})
            process.stdin.close()  # type: ignore[union-attr]
            assert process.wait(120) == 0
    assert [stored(tmp_path / "server.db", noted(run, "run_id")) for run in runs] == [journalled(run) for run in runs]
    statuses = query(tmp_path / "server.db", "SELECT name, status FROM runs ORDER BY name")
    assert statuses == [(name, "FINISHED") for name in ("served", "served-0", "served-1", "served-2")]
