"""`hpcexp backup` of a server: its directory with its modes, accounts and artifacts, and its database."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Said
from postgres import server_programs, serving_postgres
from record_support import finish, make_run, query

from hpcexp.backup.manifest import load
from hpcexp.backup.snapshots import snapshots
from hpcexp.files.atomic import write_atomic
from hpcexp.files.documents import read_plain
from hpcexp.redaction import without_password
from hpcexp.rundir import find_runs
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


def mode_of(path: Path) -> int:
    """Who may read and write it."""
    return stat.S_IMODE(path.stat().st_mode)


def snapshot_of(project: Path) -> Path:
    """The latest."""
    return snapshots(project / "kept")[-1]


def test_a_snapshot_is_read_by_nobody_who_may_not_read_the_original(
    runs: Path, server: Path, hpcexp: Callable[..., Said]
) -> None:
    """Of accounts its owner alone, of runs whoever may read these; what is restored likewise."""
    runs.chmod(0o750)
    for options in (["--server", "server"], [], ["--server", "server", "--root", "runs"]):
        assert 0 == hpcexp("backup", "kept", *options).status
    kept = snapshots(runs.parent / "kept")
    assert [0o700, 0o750, 0o700] == [mode_of(path) for path in kept]
    for name in ("secret", "users.db", "mlflow.db"):
        assert mode_of(server / name) == mode_of(kept[0] / "server" / name)
    plan = runs / "digits_mlp/synced/plan.yaml"
    plan.chmod(0o600)
    assert 0 == hpcexp("backup", "kept").status
    assert 0o600 == mode_of(snapshot_of(runs.parent) / plan.relative_to(runs.parent))
    for options in (["--server", "server", "--force"], ["--root", "back"]):
        assert 0 == hpcexp("restore", "kept", *options).status
    assert [0o700, 0o600, 0o750] == [mode_of(path) for path in (server, server / "secret", runs.parent / "back")]


def test_a_servers_directory_comes_back_with_accounts_and_artifacts(
    project: Path, server: Path, hpcexp: Callable[..., Said]
) -> None:
    """Its secret readable by its owner alone."""
    data = server
    assert 0 == hpcexp("backup", "kept", "--server", "server").status
    assert ["server"] == list(load(snapshot_of(project)).trees)
    said = hpcexp("restore", "kept", "--server", "server", "--force")
    assert (0, "") == (said.status, said.err)
    assert [("ada",)] == query(data / "users.db", "SELECT username FROM users")
    assert "a: 1" == (data / "mlartifacts/1/r/artifacts/plan.yaml").read_text()
    assert 0o600 == mode_of(data / "secret")
    assert "has no snapshot of `hpcexp backup` with runs" in hpcexp("restore", "kept").err


@contextmanager
def databases() -> Iterator[list[str]]:
    """Two databases of one PostgreSQL server."""
    import psycopg

    with serving_postgres() as server:
        with psycopg.connect(server.uri, autocommit=True) as connection:
            connection.execute("CREATE DATABASE other")
        yield [server.uri, server.uri.replace("/postgres", "/other")]


@pytest.mark.skipif(server_programs() is None or shutil.which("pg_dump") is None, reason="PostgreSQL is not installed")
def test_a_database_of_postgresql_comes_back_in_another(project: Path, hpcexp: Callable[..., Said]) -> None:
    """With its artifacts in another directory; one that has tables is left alone; no password is kept."""
    import psycopg

    with databases() as (old, new):
        run = make_run(project / "runs", without_password(old), steps=3)
        write_atomic(run.secret_uri, old, mode=0o600)
        finish(run)
        assert sync(run.path) is None
        assert 0 == hpcexp("backup", "kept", "--store", old).status
        kept = [file for file in (project / "kept").rglob("*") if file.is_file()]
        assert [".tracking"] == [file.name for file in kept if b"s3cr3t" in file.read_bytes()]
        assert 0o600 == mode_of(snapshot_of(project) / "runs/store.dump")
        assert "tables already" in hpcexp("restore", "kept", "--root", "there/runs", "--store", old).err
        assert "cannot go into" in hpcexp("restore", "kept", "--root", "there/runs").err
        said = hpcexp("restore", "kept", "--root", "there/runs", "--store", new)
        assert (0, "") == (said.status, said.err)
        with psycopg.connect(new) as connection:
            found: Any = connection.execute("SELECT artifact_uri FROM runs").fetchone()
            assert found[0].startswith((project / "there/runs/mlartifacts").as_uri())
        [moved] = find_runs(project / "there/runs")
        assert without_password(new) == read_plain(moved.mlflow)["tracking_uri"]
        assert new == moved.secret_uri.read_text().strip()
