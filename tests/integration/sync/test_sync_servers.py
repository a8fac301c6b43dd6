"""Runs reach MLflow whole and once, whatever becomes of the server or the training. With real servers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import LEAN, command, ended
from helpers import start as start_command
from record_support import (
    answer,
    finish,
    free_port,
    in_mlflow,
    journalled,
    kill_group,
    make_run,
    mlflow_server,
    noted,
    query,
    stored,
    uploader,
    wait_until,
)

from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.journal import read_points
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


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
    made = in_mlflow(f"http://127.0.0.1:{port}", run)
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
    """A real training, resumed after both: after `sync`, twice, MLflow has every value once."""
    asked = ("train", "trainer.max_epochs=40", "trainer.log_every_n_steps=1", "checkpoint.every_steps=5", *LEAN)
    with mlflow_server(tmp_path) as (port, start):
        server = start()
        mine = (*asked, f"tracking.uri=http://127.0.0.1:{port}", "tracking.wait_s=0")
        supervisor = start_command(*mine, cwd=tmp_path)
        try:
            wait_until(lambda: any(noted(run, "offset") for run in find_runs(tmp_path / "runs")), "metrics are synced")
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


def journalled_system(run: RunDir) -> list[tuple[str, int, float]]:
    """Samples of the machine."""
    points, _ = read_points(run.system)
    return [(key, point.step, value) for point in points for key, value in point.metrics.items()]
