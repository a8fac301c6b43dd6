"""What goes straight into MLflow's tables is what MLflow itself would have written there."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from record_support import query

from hpcexp.errors import RunError
from hpcexp.runs.journal import Point
from hpcexp.tracking.mlflow.sqlite_metrics import metric_tables
from hpcexp.tracking.mlflow.store import Store, connect

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""

POINTS = [
    Point(10, 1, {"train/loss": 0.1 + 0.2, "odd name: 1": 1.0}),
    Point(20, 2, {"train/loss": math.nan, "val/loss": math.inf, "low": -math.inf}),
    Point(20, 3, {"train/loss": 0.25}),
    Point(30, 3, {"train/loss": 0.125}),
    Point(15, 2, {"val/loss": 4.0, "low": 1e-300}),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store, made once."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}", path.parent / "artifacts")
    return path


def rows(database: Path, table: str, run_id: str) -> list[tuple[Any, ...]]:
    """What a table of metrics has of a run."""
    columns = "key, timestamp, step, value, is_nan"
    return query(database, f"SELECT {columns} FROM {table} WHERE run_uuid = ? ORDER BY {columns}", run_id)


def made_run(store: Store) -> str:
    """A new run."""
    return store.create_run(store.experiment("digits"), "run", 1, {})


def test_the_tables_hold_what_mlflow_writes(database: Path) -> None:
    """All values and the last of each metric; in one go, in several, or twice."""
    direct = connect(f"sqlite:///{database}", database.parent / "artifacts")
    theirs = Store(direct._client, database.parent / "artifacts")
    expected = made_run(theirs)
    for point in POINTS:
        theirs.log(expected, [point])
    batches = [[POINTS], [POINTS[:2], POINTS[2:]], [POINTS[3:], POINTS[:3]], [POINTS, POINTS]]
    for batch in batches:
        run_id = made_run(direct)
        for points in batch:
            direct.log(run_id, points)
        for table in ("metrics", "latest_metrics"):
            assert rows(database, table, run_id) == rows(database, table, expected)


def test_nothing_is_added_to_a_deleted_run(database: Path) -> None:
    """MLflow would not take it either."""
    store = connect(f"sqlite:///{database}", database.parent / "artifacts")
    run_id = made_run(store)
    store._client.delete_run(run_id)
    with pytest.raises(RunError, match="was deleted in MLflow"):
        store.log(run_id, POINTS)
    assert rows(database, "metrics", run_id) == []


def test_tables_of_another_mlflow_are_left_to_it(tmp_path: Path) -> None:
    """One that has a column more."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        for table in ("metrics", "latest_metrics"):
            connection.execute(f"CREATE TABLE {table} (run_uuid, key, timestamp, step, value, is_nan, unit)")
    assert metric_tables(path) is None
