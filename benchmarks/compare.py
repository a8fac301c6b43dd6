"""CPU time of `hpcexp compare` over many runs, from their directories and from MLflow's file, as whole processes.

The peer is a process that has MLflow give the same runs as pandas' data frame, and compares nothing. All runs are
copies of one real run, each with its own rate, seed and result.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Row, cpu_seconds, interleaved
from benchmarks.size import size
from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.records.sync import read_sync_record

PAIRS = 5
GOAL = 0.2
NUM_RUNS = size((1_000, 10_000), (5, 10))
NUM_SEEDS = 5
TRAIN = ["-m", "hpcexp", "train", "trainer.max_epochs=2", "run.pictures=false", "launch.progress=none"]
OURS = ["-m", "hpcexp", "compare"]
FROM_FILE = [*OURS, "--uri", "sqlite:///runs/mlflow.db"]
MLFLOW = [
    "-c",
    "import mlflow; mlflow.set_tracking_uri('sqlite:///runs/mlflow.db'); "
    "print(len(mlflow.search_runs(search_all_experiments=True, max_results=50_000)))",
]


def rows(pairs: int, scratch: Path) -> Iterator[Row]:
    """The table's lines. MLflow takes half a minute for the larger number: fewer rounds."""
    cpu_seconds(TRAIN, scratch)
    run = next(find_runs(scratch / "runs"))
    made = 1
    for number in NUM_RUNS:
        make_runs(run, range(made, number), scratch / "runs" / "mlflow.db")
        made = number
        taken = interleaved(
            {
                "directories": lambda: cpu_seconds(OURS, scratch),
                "file": lambda: cpu_seconds(FROM_FILE, scratch),
                "mlflow": lambda: cpu_seconds(MLFLOW, scratch),
            },
            pairs if number == NUM_RUNS[0] else max(1, pairs // 2),
        )
        what = f"of {number:,} runs / `mlflow.search_runs`"
        yield Row(f"`hpcexp compare` {what}", taken["directories"], taken["mlflow"], GOAL)
        yield Row(f"`hpcexp compare --uri sqlite:///…` {what}", taken["file"], taken["mlflow"], GOAL)


class Copy(NamedTuple):
    """What one copy has of its own."""

    rate: str
    seed: str
    acc: float

    @property
    def values(self) -> dict[str, str]:
        """By their names in MLflow."""
        return {"optimizer.lr": self.rate, "seed": self.seed, "hpcexp.best.value": str(self.acc)}


def make_runs(run: RunDir, numbers: range, database: Path) -> None:
    """Copies of a run, in directories beside it and in MLflow."""
    copies = {
        number: Copy(str(number // NUM_SEEDS + 1), str(number % NUM_SEEDS + 10), number / 1e5) for number in numbers
    }
    _copy_directories(run, copies)
    with closing(sqlite3.connect(database)) as connection, connection:
        _copy_rows(connection, str(read_sync_record(run).run_id), copies)


def _copy_directories(run: RunDir, copies: dict[int, Copy]) -> None:
    plan, summary, journal = run.plan.read_text(), read_plain(run.summary), run.journal.read_bytes()
    status, record = run.status.read_bytes(), run.mlflow.read_bytes()
    for number, copy in copies.items():
        made = RunDir(run.path.with_name(f"lr={copy.rate}-s{copy.seed}-{number:08x}"))
        made.path.mkdir()
        own = plan.replace("\n    lr: 0.003", f"\n    lr: {copy.rate}").replace("\n  seed: 1", f"\n  seed: {copy.seed}")
        made.plan.write_text(own.replace(run.path.name, made.path.name))
        made.summary.write_text(json.dumps({**summary, "best": {**summary["best"], "value": copy.acc}}))
        made.status.write_bytes(status)
        made.mlflow.write_bytes(record)
        made.journal.write_bytes(journal)


def _copy_rows(connection: sqlite3.Connection, run_id: str, copies: dict[int, Copy]) -> None:
    for table in ("runs", "params", "tags", "latest_metrics"):
        found = connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run_id,))
        names = [name for name, *_ in found.description]
        of_it = [dict(zip(names, row, strict=True)) for row in found]
        rows = [
            {**row, "run_uuid": f"{number:032x}", **_own(row, copy)} for number, copy in copies.items() for row in of_it
        ]
        marks = ", ".join(f":{name}" for name in names)
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def _own(row: dict[str, object], copy: Copy) -> dict[str, str]:
    values = copy.values
    return {"value": values[key]} if (key := str(row.get("key"))) in values else {}
