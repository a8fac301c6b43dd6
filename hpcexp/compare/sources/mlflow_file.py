"""MLflow's SQLite file, read and never written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcexp.compare.sources.stored import Stored, series_of
from hpcexp.errors import RunError
from hpcexp.runs.series import Series


class MlflowFile:
    """The file of a store. A run's many short rows come as one JSON text: that halves the time."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RunError(f"There is no {path}: no run has been recorded there.\nFix: hpcexp train, or another --uri.")
        self._path = path
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    def runs(self) -> list[Stored]:
        with self._readable_errors():
            texts = {name: self._by_run(name) for name in ("params", "tags")}
            metrics = self._by_run("latest_metrics", "WHERE NOT is_nan")
            rows = self._connection.execute(
                "SELECT run_uuid, runs.name, experiments.name, status, start_time FROM runs"
                " JOIN experiments USING (experiment_id) WHERE runs.lifecycle_stage = 'active' ORDER BY start_time"
            ).fetchall()
        return [
            Stored(
                id=run_id,
                name=name or run_id,
                experiment=experiment,
                status=status,
                started_ms=started or 0,
                params=texts["params"].get(run_id, {}),
                tags=texts["tags"].get(run_id, {}),
                metrics=metrics.get(run_id, {}),
            )
            for run_id, name, experiment, status, started in rows
        ]

    def curve(self, run_id: str, metric: str) -> Series:
        with self._readable_errors():
            rows = self._connection.execute(
                "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? AND NOT is_nan"
                " ORDER BY step, timestamp",
                (run_id, metric),
            )
            return series_of(rows)

    def _by_run(self, table: str, condition: str = "") -> dict[str, dict[str, Any]]:
        columns = "SELECT run_uuid, json_group_object(key, value)"
        rows = self._connection.execute(f"{columns} FROM {table} {condition} GROUP BY run_uuid")
        return {run_id: json.loads(text) for run_id, text in rows}

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise RunError(
                f"{self._path} cannot be read as an MLflow store: {e}.\n"
                "Fix: --uri of another store, or without --uri for the run directories."
            ) from e
