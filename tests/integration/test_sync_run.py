"""What a run directory holds reaches MLflow whole and once, whatever dies on the way. All with real stores."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import LEAN, command, ended
from helpers import start as start_command
from record_support import (
    REPOSITORY,
    answer,
    finish,
    free_port,
    journalled,
    kill_group,
    make_run,
    mlflow_server,
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
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.journal import read_points
from hpcexp.tracking.sync.destination import check_redirect, destined, direct, redirect
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs whose database is made once for all tests of this file."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def database(root: Path) -> Path:
    """Its file."""
    return root / "mlflow.db"


@pytest.fixture
def uri(database: Path) -> str:
    """Its address."""
    return f"sqlite:///{database}"


def noted(run: RunDir, key: str) -> Any:
    """An entry of `mlflow.json`."""
    return read_plain(run.mlflow).get(key)


def mlflow_client(uri: str) -> Any:
    """MLflow's own client; imported here as it takes seconds."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


def mlflow_run(uri: str, run: RunDir) -> Any:
    """What MLflow says of a run."""
    return mlflow_client(uri).get_run(noted(run, "run_id"))


def test_a_finished_run_is_whole_in_mlflow(root: Path, uri: str, database: Path) -> None:
    """Metrics, parameters, tags, description, data set, artifacts, status and model."""
    run = make_run(root, uri, name="whole", steps=1200)
    finish(run)
    assert sync(run.path) is None
    assert noted(run, "synced") is True
    made = mlflow_run(uri, run)
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
    first = mlflow_run(uri, run)
    run.mlflow.write_text(run.mlflow.read_text().replace('"synced": true', '"synced": false'))
    run.mlflow.write_text(run.mlflow.read_text().replace(f'"offset": {noted(run, "offset")}', '"offset": 0'))
    assert sync(run.path) is None
    again = mlflow_run(uri, run)
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
    """Odd names and long values are cut; numbers that are none are kept as such."""
    tags = {"long": "x" * 9000, "odd (name)": 1}
    run = make_run(root, uri, name="odd", tags=tags, experiment="digits/v1.0")
    run.journal.write_text('{"t":1,"s":1,"m":{"loss [nats]":"nan","top":"inf"}}\n')
    finish(run)
    assert sync(run.path) is None
    made = mlflow_run(uri, run)
    assert (len(made.data.tags["long"]), made.data.tags["odd _name_"]) == (8000, "1")
    found = query(database, "SELECT key, is_nan FROM metrics WHERE run_uuid = ? AND step = 1", made.info.run_id)
    assert sorted(found) == [("loss _nats_", 1), ("top", 0)]
    assert mlflow_client(uri).get_logged_model(noted(run, "model_id")).name == "digits-v1-0"


@pytest.mark.parametrize(("state", "status"), [("failed", "FAILED"), ("killed", "KILLED")])
def test_a_run_that_did_not_finish_says_so(root: Path, uri: str, state: str, status: str) -> None:
    """With what it logged until then."""
    run = make_run(root, uri, name=state, steps=5)
    set_state(run, state)
    assert sync(run.path) is None
    assert mlflow_run(uri, run).info.status == status


def test_a_model_is_not_recorded_where_it_is_not_wanted(root: Path, uri: str) -> None:
    """`tracking.model=never`."""
    run = make_run(root, uri, name="modelless", model="never")
    finish(run)
    assert sync(run.path) is None
    assert mlflow_run(uri, run).outputs is None or not mlflow_run(uri, run).outputs.model_outputs


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
        assert mlflow_run(uri, run).info.status == "RUNNING"
        assert process_name(sync_process.pid) == holder_of(run.sync_lock)
        sync_process.send_signal(signal.SIGINT)
        write_steps(run, 10, first=11)
        finish(run)
        assert sync_process.wait(60) == 0
    assert mlflow_run(uri, run).info.status == "FINISHED"
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
    assert mlflow_run(uri, run).info.status == "KILLED"


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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, Any]]:
    """A port, and a function that starts an MLflow server there on a database of its own."""
    with mlflow_server(tmp_path) as found:
        yield found


def test_a_server_that_dies_and_comes_back_has_everything_once(tmp_path: Path, server: tuple[int, Any]) -> None:
    """Killed under a run, gone at its end, back for `sync`, which may be said twice."""
    port, start = server
    first = start()
    run = make_run(tmp_path, f"http://127.0.0.1:{port}", steps=3000, wait_s=1.0)
    with uploader(run) as sync_process:
        wait_until(lambda: noted(run, "offset"), "some metrics are synced")
        kill_group(first)
        finish(run)
        assert sync_process.wait(60) == 1
    assert noted(run, "synced") is False
    assert f"127.0.0.1:{port}" in noted(run, "problem")
    start()
    assert sync(run.path) is None
    assert sync(run.path) is None
    assert (noted(run, "synced"), noted(run, "problem")) == (True, None)
    assert stored(tmp_path / "server.db", noted(run, "run_id")) == journalled(run)
    made = mlflow_run(f"http://127.0.0.1:{port}", run)
    assert made.info.status == "FINISHED"
    check_page(port, made.info.run_id)


def check_page(port: int, run_id: str) -> None:
    """The UI's page is there, and its REST calls give artifacts."""
    assert b"<title>MLflow</title>" in (answer(port, "/") or b"")
    plan = answer(port, f"/get-artifact?path=plan.yaml&run_uuid={run_id}") or b""
    assert b"signature: a1b2c3d4" in plan


def test_a_dead_server_does_not_hold_anybody_long(tmp_path: Path) -> None:
    """A run of which nothing could be synced says why, and can be synced later."""
    port = free_port()
    run = make_run(tmp_path, f"http://127.0.0.1:{port}", steps=5, wait_s=0.0)
    finish(run)
    with uploader(run) as sync_process:
        assert sync_process.wait(60) == 1
    assert noted(run, "run_id") is None
    assert noted(run, "problem") == f"http://127.0.0.1:{port}: Connection refused"
    assert "not synced" in (run.logs / "sync.log").read_text()
    assert (run.plots / "loss.png").exists()


def test_a_server_that_hangs_does_not_hold_anybody_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers: one call's time limit, not MLflow's minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = make_run(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", steps=5)
        finish(run)
        assert "timed out" in (sync(run.path) or "").lower()


def test_a_killed_server_and_a_killed_supervisor_lose_nothing(tmp_path: Path) -> None:
    """A real training, gone on with after both: `sync`, twice, finds every value there once."""
    asked = ("train", "trainer.max_epochs=40", "trainer.log_every_n_steps=1", "checkpoint.every_steps=5", *LEAN)
    with mlflow_server(tmp_path) as (port, start):
        server = start()
        mine = (*asked, f"tracking.uri=http://127.0.0.1:{port}", "tracking.wait_s=0")
        supervisor = start_command(*mine, cwd=tmp_path)
        try:
            wait_until(lambda: any(noted_offset(run) for run in find_runs(tmp_path / "runs")), "metrics are synced")
            kill_group(server)
        finally:
            supervisor.kill()
            ended(supervisor)
        assert 0 == command(*mine, cwd=tmp_path).status
        start()
        for _ in range(2):
            wait_until(lambda: 0 == command("sync", cwd=tmp_path).status, "what is left is synced")
        [run] = find_runs(tmp_path / "runs")
        assert "finished" == read_plain(run.status)["state"]
        expected = sorted([*journalled(run), *journalled_system(run)])
        assert expected == stored(tmp_path / "server.db", read_plain(run.mlflow)["run_id"])
        assert [(1,)] == query(tmp_path / "server.db", "SELECT count(*) FROM runs")


def noted_offset(run: RunDir) -> int:
    """How far MLflow has the journal."""
    return int(read_plain(run.mlflow).get("offset") or 0)


def journalled_system(run: RunDir) -> list[tuple[str, int, float]]:
    """Samples of the machine."""
    points, _ = read_points(run.system)
    return [(key, point.step, value) for point in points for key, value in point.metrics.items()]
