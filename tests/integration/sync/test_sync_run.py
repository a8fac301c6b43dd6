"""What a run directory holds reaches MLflow whole and once, whatever dies on the way. All with real stores."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_support import (
    REPOSITORY,
    finish,
    free_port,
    in_mlflow,
    journalled,
    make_run,
    mlflow_client,
    noted,
    query,
    set_state,
    stored,
    uploader,
    wait_until,
    write_steps,
)

from hpcexp.errors import ConfigError
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.files.locks import holder_of, process_name
from hpcexp.plan import load_plan, save_plan
from hpcexp.text.key_names import legal_key
from hpcexp.tracking.sync.destination import check_redirect, destined, direct, redirect
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


def test_a_finished_run_is_whole_in_mlflow(root: Path, uri: str, database: Path) -> None:
    """Metrics, parameters, tags, description, data set, artifacts, status and model."""
    run = make_run(root, uri, name="whole", steps=1200)
    finish(run)
    assert sync(run.path) is None
    assert noted(run, "synced") is True
    made = in_mlflow(uri, run)
    assert stored(database, made.info.run_id) == journalled(run)
    assert (made.info.run_name, made.info.status) == ("whole", "FINISHED")
    assert len(made.data.params) > 40
    assert (
        made.data.params.items()
        >= {
            "name": "digits_mlp",
            "notes": "Does a wider layer help?",
            "seed": "1",
            "hardware.devices": "[0, 1]",
            "hardware.threads_per_rank": "null",
            "model._target_": "hpcexp.models.MLP",
            "model.hidden": "[128, 64]",
            "optimizer.lr": "0.01",
        }.items()
    )
    expected = {
        "hpcexp.signature": "a1b2c3d4",
        "hpcexp.git.dirty": "true",
        "hpcexp.data.fingerprint": "f" * 64,
        "mlflow.source.git.commit": "c" * 40,
        "mlflow.user": "ada",
        "team": "vision",
    }
    assert expected.items() <= made.data.tags.items()
    for words in ("Does a wider layer help?", "test/acc 0.985", "`optimizer.lr=0.01`", str(run.path), "uncommitted"):
        assert words in made.data.tags["mlflow.note.content"]
    assert [entry.dataset.name for entry in made.inputs.dataset_inputs] == ["digits"]
    check_files(mlflow_client(uri), made)


def check_files(client: Any, made: Any) -> None:
    """Artifacts of the run and its model."""
    run_id = made.info.run_id
    names = {entry.path for folder in (None, "plots", "logs") for entry in client.list_artifacts(run_id, folder)}
    assert {"plan.yaml", "overrides.txt", "summary.json", "confusion.json", "logs/rank-0.log"} <= names
    assert {"plots/loss.png", "plots/confusion.png"} <= names
    (output,) = made.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("digits_mlp", "READY", run_id)
    assert {metric.key: metric.value for metric in model.metrics} == {"test/acc": 0.985, "test/loss": 0.06}
    assert model.params["optimizer.lr"] == "0.01"
    files = [entry.path for entry in client.list_logged_model_artifacts(output.model_id)]
    assert files == ["best.ckpt", "plan.yaml"]


def test_syncing_again_changes_nothing(root: Path, uri: str, database: Path) -> None:
    """Also from the journal's start, as after a loss of `mlflow.json`'s last lines."""
    run = make_run(root, uri, name="again", steps=50)
    finish(run)
    assert sync(run.path) is None
    first = in_mlflow(uri, run)
    run.mlflow.write_text(run.mlflow.read_text().replace('"synced": true', '"synced": false'))
    run.mlflow.write_text(run.mlflow.read_text().replace(f'"offset": {noted(run, "offset")}', '"offset": 0'))
    assert sync(run.path) is None
    again = in_mlflow(uri, run)
    assert first.info.run_id == again.info.run_id
    assert [output.model_id for output in first.outputs.model_outputs] == [noted(run, "model_id")]
    assert len(again.outputs.model_outputs) == 1
    assert stored(database, again.info.run_id) == journalled(run)
    assert query(database, "SELECT count(*) FROM logged_models WHERE source_run_id = ?", again.info.run_id) == [(1,)]


def test_a_run_made_before_its_id_was_noted_is_found_again(root: Path, uri: str, database: Path) -> None:
    """Killed between MLflow's answer and our note of it: still one run."""
    run = make_run(root, uri, name="noted", steps=5)
    finish(run)
    assert sync(run.path) is None
    run_id, token = noted(run, "run_id"), noted(run, "token")
    run.mlflow.write_text(f'{{"token": "{token}"}}')
    assert sync(run.path) is None
    assert noted(run, "run_id") == run_id
    assert query(database, "SELECT count(*) FROM runs WHERE name = 'noted'") == [(1,)]


def test_a_run_deleted_in_mlflow_is_made_anew(root: Path, uri: str, database: Path) -> None:
    """The run directory is the truth."""
    run = make_run(root, uri, name="deleted", steps=20)
    finish(run)
    assert sync(run.path) is None
    gone = noted(run, "run_id")
    mlflow_client(uri).delete_run(gone)
    run.mlflow.write_text(run.mlflow.read_text().replace('"synced": true', '"synced": false'))
    assert sync(run.path) is None
    assert noted(run, "run_id") != gone
    assert stored(database, noted(run, "run_id")) == journalled(run)


def test_a_run_goes_on_where_sync_has_sent_it(root: Path, uri: str) -> None:
    """Unless it is asked for otherwise than before."""
    dead = f"http://127.0.0.1:{free_port()}"
    run = make_run(root, dead, name="sent")
    finish(run)
    for wrong in ({"uri": ""}, {"uri": "nowhere"}, {"experiment": ""}):
        with pytest.raises(ConfigError):
            check_redirect(run, wrong.get("uri"), wrong.get("experiment"))
    redirect(run, uri, "mine")
    plan = load_plan(run.plan)
    direct(run, plan, goes_on=True)
    sent = destined(run)
    assert (uri, "mine") == (sent.tracking_uri, sent.config["tracking"]["experiment"])
    direct(run, replace(plan, tracking_uri="http://ada:pw@127.0.0.1:9"), goes_on=True)
    assert "http://ada@127.0.0.1:9" == destined(run).tracking_uri
    direct(run, plan, goes_on=False)
    assert dead == destined(run).tracking_uri
    assert not run.secret_uri.exists()


def test_what_mlflow_would_not_take_is_made_legal(root: Path, uri: str, database: Path) -> None:
    """Odd names have the start of a digest, long values are cut; numbers that are none are kept as such."""
    tags = {"long": "x" * 9000, "odd (name)": 1}
    run = make_run(root, uri, name="odd", tags=tags, experiment="digits/v1.0")
    run.journal.write_text('{"t":1,"s":1,"m":{"loss [nats]":"nan","top":"inf"}}\n')
    finish(run)
    assert sync(run.path) is None
    made = in_mlflow(uri, run)
    assert (len(made.data.tags["long"]), made.data.tags[legal_key("odd (name)")]) == (8000, "1")
    found = query(database, "SELECT key, is_nan FROM metrics WHERE run_uuid = ? AND step = 1", made.info.run_id)
    assert sorted(found) == [(legal_key("loss [nats]"), 1), ("top", 0)]
    assert mlflow_client(uri).get_logged_model(noted(run, "model_id")).name == "digits-v1-0"


@pytest.mark.parametrize(("state", "status"), [("failed", "FAILED"), ("killed", "KILLED")])
def test_a_run_that_did_not_finish_says_so(root: Path, uri: str, state: str, status: str) -> None:
    """With what it logged until then."""
    run = make_run(root, uri, name=state, steps=5)
    set_state(run, state)
    assert sync(run.path) is None
    assert in_mlflow(uri, run).info.status == status


def test_a_model_is_not_recorded_where_it_is_not_wanted(root: Path, uri: str) -> None:
    """`tracking.model=never`."""
    run = make_run(root, uri, name="modelless", model="never")
    finish(run)
    assert sync(run.path) is None
    assert in_mlflow(uri, run).outputs is None or not in_mlflow(uri, run).outputs.model_outputs


def test_without_tracking_a_run_still_gets_its_pictures(root: Path) -> None:
    """`tracking.enabled=false`."""
    run = make_run(root, None, name="untracked", steps=30)
    finish(run)
    assert sync(run.path) is None
    assert (run.plots / "loss.png").exists()
    assert not run.mlflow.exists()


def test_a_run_gets_no_pictures_that_nobody_wants(root: Path) -> None:
    """`run.pictures=false`."""
    run = make_run(root, None, name="plain", steps=30)
    plan = load_plan(run.plan)
    plan.config["run"]["pictures"] = False
    save_plan(plan, run.plan)
    finish(run)
    assert sync(run.path) is None
    assert not run.plots.exists()


def test_a_run_can_be_watched_while_it_goes_on(root: Path, uri: str, database: Path) -> None:
    """The sync process follows the journal, leaves Ctrl-C to the supervisor, and ends with the run."""
    run = make_run(root, uri, name="watched", steps=10)
    with uploader(run) as sync_process:
        wait_until(lambda: noted(run, "offset"), "the first metrics are synced")
        assert in_mlflow(uri, run).info.status == "RUNNING"
        assert process_name(sync_process.pid) == holder_of(run.sync_lock)
        sync_process.send_signal(signal.SIGINT)
        write_steps(run, 10, first=11)
        finish(run)
        assert sync_process.wait(60) == 0
    assert in_mlflow(uri, run).info.status == "FINISHED"
    assert stored(database, noted(run, "run_id")) == journalled(run)


def test_a_sync_process_killed_on_its_way_loses_and_doubles_nothing(root: Path, uri: str, database: Path) -> None:
    """kill -9 in the middle of a long journal, then `sync`."""
    run = make_run(root, uri, name="sync-killed", steps=3000)
    with uploader(run):
        wait_until(lambda: noted(run, "offset"), "some metrics are synced")
    assert noted(run, "offset") < run.journal.stat().st_size
    run_id = noted(run, "run_id")
    finish(run)
    assert sync(run.path) is None
    assert noted(run, "run_id") == run_id
    assert stored(database, run_id) == journalled(run)


def test_a_run_that_lost_its_supervisor_ends_as_killed(root: Path, uri: str) -> None:
    """In `status.json` and in MLflow."""
    run = make_run(root, uri, name="orphan", steps=5)
    started = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor:
        write_json(run.status, {**read_plain(run.status), "pid": supervisor.pid})
        with uploader(run) as sync_process:
            wait_until(lambda: noted(run, "offset"), "the first metrics are synced")
            supervisor.kill()
            assert sync_process.wait(60) == 0
    status = read_plain(run.status)
    assert (status["state"], status["cause"]) == ("killed", "the process that supervised the run died")
    assert status["ended"] > started
    assert in_mlflow(uri, run).info.status == "KILLED"


RACE = """
import os, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store  # once for all, so that they start together
from hpcexp.tracking.sync.run_process import sync

def race(path):
    if child := os.fork():
        return child
    try:
        os._exit(0 if sync(Path(path)) is None else 1)
    finally:
        os._exit(2)

children = [race(path) for path in sys.argv[1:]]
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_eight_runs_racing_on_a_fresh_store_all_arrive(tmp_path: Path) -> None:
    """The database is made once, and one experiment for all."""
    database = tmp_path / "mlflow.db"
    runs = [make_run(tmp_path, f"sqlite:///{database}", name=f"seed={i}", steps=10) for i in range(8)]
    for run in runs:
        set_state(run, "finished")
    racers = subprocess.run([sys.executable, "-c", RACE, *(str(run.path) for run in runs)], cwd=REPOSITORY, check=False)
    assert racers.returncode == 0
    assert query(database, "SELECT count(*) FROM experiments WHERE name = 'digits_mlp'") == [(1,)]
    assert query(database, "SELECT count(*) FROM runs WHERE status = 'FINISHED'") == [(8,)]
    assert query(database, "PRAGMA journal_mode") == [("wal",)]
    assert [stored(database, noted(run, "run_id")) for run in runs] == [journalled(run) for run in runs]
