"""Metrics into MLflow's SQLite database by two statements a batch: a tenth of what its own objects cost."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hpcexp.errors import RunError

_COLUMNS = {"run_uuid", "key", "timestamp", "step", "value", "is_nan"}
"""Of both tables; where they have others, another MLflow has made them."""
_INSERT = "INSERT OR IGNORE INTO metrics (run_uuid, key, timestamp, step, value, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
_UPDATE = (
    "INSERT INTO latest_metrics (run_uuid, key, timestamp, step, value, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (key, run_uuid) DO UPDATE"
    " SET timestamp = excluded.timestamp, step = excluded.step, value = excluded.value, is_nan = excluded.is_nan"
    " WHERE (excluded.step, excluded.timestamp, excluded.value)"
    " > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"
)
_LARGEST = 1.7976931348623157e308
"""What MLflow stores for infinity."""
_BUSY_S = 20.0


class Value(NamedTuple):
    """One value of one metric."""

    key: str
    time_ms: int
    step: int
    value: float


_Row = tuple[str, str, int, int, float, bool]
"""Run, key, time, step, value and whether that is not a number."""


class MetricTables:
    """The tables of metrics in an MLflow database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def insert(self, run_id: str, values: Iterable[Value]) -> None:
        """Add to a run what it lacks of `values`; RunError where it was deleted in MLflow."""
        rows = [_row(run_id, value) for value in values]
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            stage = connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
            if stage != ("active",):
                raise RunError(f"the run {run_id} was deleted in MLflow")
            connection.executemany(_INSERT, rows)
            connection.executemany(_UPDATE, _latest(rows))


def metric_tables(path: Path) -> MetricTables | None:
    """Those of the database at `path`; None where they are not as they are known here."""
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    for table in ("metrics", "latest_metrics"):
        if {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} != _COLUMNS:
            connection.close()
            return None
    return MetricTables(connection)


def _row(run_id: str, value: Value) -> _Row:
    key, time_ms, step, number = value
    is_nan = math.isnan(number)
    return run_id, key, time_ms, step, 0.0 if is_nan else min(max(number, -_LARGEST), _LARGEST), is_nan


def _latest(rows: Sequence[_Row]) -> list[_Row]:
    """For each metric the row that counts as its last: by step, then time, then value."""
    latest: dict[str, _Row] = {}
    for row in rows:
        _, key, time_ms, step, value, _ = row
        before = latest.get(key)
        if before is None or (step, time_ms, value) > (before[3], before[2], before[4]):
            latest[key] = row
    return list(latest.values())
