"""Runs and a server's directory to back up."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from helpers import Said
from record_support import end_sweep, finish, make_run, make_sweep

from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run_process import sync, sync_sweep


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which one is synced to SQLite, and a sweep. For copying: it is shared."""
    root = tmp_path_factory.mktemp("recorded") / "runs"
    uri = f"sqlite:///{root}/mlflow.db"
    run = make_run(root, uri, "synced", steps=20)
    finish(run)
    assert sync(run.path) is None
    sweep = make_sweep(root)
    sweep.jobs.write_text(
        json.dumps({"job": 1, "overrides": ["optimizer.lr=0.1"], "signature": "a", "run": str(run.path)}) + "\n"
    )
    end_sweep(sweep, best=run)
    assert sync_sweep(sweep.path, Stores()) is None
    return root


@pytest.fixture
def runs(recorded: Path, project: Path) -> Path:
    """A copy of these where they say that they are: in `runs` of the project."""
    shutil.copytree(recorded, project / "runs", ignore=shutil.ignore_patterns("*.lock"))
    return project / "runs"


@pytest.fixture
def moved(recorded: Path, project: Path, hpcexp: Callable[..., Said]) -> Path:
    """The runs, backed up and restored into another directory."""
    assert 0 == hpcexp("backup", "kept", "--root", str(recorded)).status
    said = hpcexp("restore", "kept", "--root", "elsewhere/runs")
    assert (0, "") == (said.status, said.err)
    return project / "elsewhere" / "runs"


@pytest.fixture
def server(project: Path) -> Path:
    """A directory as `hpcexp serve` has it, with the account of Ada."""
    data = project / "server"
    data.mkdir(mode=0o700)
    (data / "mlartifacts/1/r/artifacts").mkdir(parents=True)
    (data / "mlartifacts/1/r/artifacts/plan.yaml").write_text("a: 1")
    for name in ("users.db", "mlflow.db"):
        with closing(sqlite3.connect(data / name)) as connection, connection:
            connection.execute("CREATE TABLE users (username)")
            connection.execute("INSERT INTO users VALUES ('ada')")
    (data / "secret").write_text("key")
    (data / "secret").chmod(0o600)
    return data
