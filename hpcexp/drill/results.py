"""What a drill's trainings have left: in MLflow, and of losses."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

from hpcexp.compare.bitwise import Check, Value, journalled, metrics
from hpcexp.files.databases import reading
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.tracking.mlflow.uri import sqlite_path


def recorded(uri: str, killed: RunDir, num_trainings: int) -> Check:
    """What the drill's own MLflow store has of the `killed` run, compared with its journal."""
    known = read_sync_record(killed)
    if not known.synced or known.run_id is None:
        why = known.problem or "it is still being uploaded"
        return Check("MLflow", is_same=False, detail=f"not synced: {why}")
    path = sqlite_path(uri)
    assert path is not None
    with reading(path) as store:
        runs = dict(store.execute("SELECT run_uuid, status FROM runs"))
        rows = store.execute("SELECT step, key, value, is_nan FROM metrics WHERE run_uuid = ?", (known.run_id,))
        trained = (row for row in rows if not row[1].startswith("system/"))  # no two machines are as busy
        values = Counter((step, key, "nan" if is_nan else value.hex()) for step, key, value, is_nan in trained)
    if len(runs) != num_trainings:
        return Check("MLflow", is_same=False, detail=f"{len(runs)} runs of {num_trainings} trainings")
    if runs[known.run_id] != "FINISHED":
        return Check("MLflow", is_same=False, detail=f"the run is {runs[known.run_id]}, not FINISHED")
    return metrics("MLflow", Counter({_as_in_mlflow(value): n for value, n in journalled(killed).items()}), values)


def _as_in_mlflow(value: Value) -> Value:
    """MLflow keeps infinities as the largest number there is."""
    step, name, text = value
    number = float.fromhex(text)
    most = sys.float_info.max
    return step, name, text if math.isnan(number) else max(-most, min(most, number)).hex()


def steps_of(run: RunDir) -> int:
    """Optimizer steps that a finished run has made."""
    return read_summary(run).steps or 0


def losses(run: RunDir) -> dict[tuple[int, str], float]:
    """Step and name of every loss of the journal."""
    points = read_points(run.journal)[0]
    return {(p.step, name): value for p in points for name, value in p.metrics.items() if name.endswith("loss")}


def own_store(place: Path) -> str:
    """The drill's MLflow store."""
    return f"sqlite:///{place / 'mlflow.db'}"
