"""What a training has come to, and where two of them part."""

from __future__ import annotations

import math
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcexp.record.journal import read_points
from hpcexp.record.uri import sqlite_path
from hpcexp.rundir import RunDir, read_json

SUMMARISED = ("epochs", "steps", "diverged", "best", "test")
"""What of a summary must be the same. Durations differ, and the files' digests: they hold more than weights."""
_OF_THE_FILE = ("path", "sha256", "bytes")

Value = tuple[int, str, str]
"""Step, metric, and the value to the bit (`float.hex`)."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    what: str
    is_same: bool
    told: str


def compared(whole: RunDir, killed: RunDir) -> list[Check]:
    """Weights, summary and journal of the `killed` run, held against those of the `whole` one."""
    expected, found = read_json(whole.summary), read_json(killed.summary)
    before, after = expected["weights_sha256"], found["weights_sha256"]
    weights = Check("weights", before == after, before[:12] if before == after else f"{before[:12]} ≠ {after[:12]}")
    return [weights, _summaries(expected, found), _metrics("metrics", journalled(whole), journalled(killed))]


def recorded(uri: str, killed: RunDir, num_trainings: int) -> Check:
    """What the drill's own MLflow store has of the `killed` run, held against its journal."""
    note = read_json(killed.mlflow)
    if not note.get("delivered"):
        return Check(
            "MLflow", is_same=False, told=f"not delivered: {note.get('problem') or 'the shipper is still at it'}"
        )
    path = sqlite_path(uri)
    assert path is not None
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=20)) as store:
        runs = dict(store.execute("SELECT run_uuid, status FROM runs"))
        rows = store.execute("SELECT step, key, value, is_nan FROM metrics WHERE run_uuid = ?", (note["run_id"],))
        values = Counter((step, key, "nan" if is_nan else value.hex()) for step, key, value, is_nan in rows)
    if len(runs) != num_trainings:
        return Check("MLflow", is_same=False, told=f"{len(runs)} runs of {num_trainings} trainings")
    if runs[note["run_id"]] != "FINISHED":
        return Check("MLflow", is_same=False, told=f"the run is {runs[note['run_id']]}, not FINISHED")
    return _metrics("MLflow", Counter({_as_in_mlflow(value): n for value, n in journalled(killed).items()}), values)


def journalled(run: RunDir) -> Counter[Value]:
    """Every value of the journal, and how often it stands there."""
    points = read_points(run.journal)[0]
    return Counter((p.step, name, value.hex()) for p in points for name, value in p.metrics.items())


def _summaries(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Check:
    parts = [
        f"{name} {_shown(a)} ≠ {_shown(b)}"
        for part in SUMMARISED
        for name, a, b in _pairs(part, expected.get(part), found.get(part))
        if a != b
    ]
    return Check("summary", not parts, "; ".join(parts) or f"{found['steps']} steps, {found['epochs']} epochs")


def _pairs(name: str, a: Any, b: Any) -> Iterable[tuple[str, Any, Any]]:
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [(name, a, b)]
    keys = [key for key in {**a, **b} if key not in _OF_THE_FILE]
    return [(f"{name} {key}", a.get(key), b.get(key)) for key in keys]


def _shown(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _metrics(what: str, expected: Counter[Value], found: Counter[Value]) -> Check:
    if expected == found:
        return Check(what, is_same=True, told=f"{found.total()} values, each once")
    step, name = min((step, name) for step, name, _ in (expected - found) + (found - expected))
    of = [_at(values, step, name) for values in (expected, found)]
    return Check(what, is_same=False, told=f"first at step {step}: {name} {of[0]} ≠ {of[1]}")


def _at(values: Counter[Value], step: int, name: str) -> str:
    texts = [f"{float.fromhex(v):.9g}" for s, n, v in values.elements() if (s, n) == (step, name)]
    return " and ".join(texts) or "(missing)"


def _as_in_mlflow(value: Value) -> Value:
    """MLflow keeps infinities as the largest number there is."""
    step, name, text = value
    number = float.fromhex(text)
    most = sys.float_info.max
    return step, name, text if math.isnan(number) else max(-most, min(most, number)).hex()


def steps_of(run: RunDir) -> int:
    """Optimizer steps that a finished run has made."""
    steps: int = read_json(run.summary)["steps"]
    return steps


def losses(run: RunDir) -> dict[tuple[int, str], float]:
    """Step and name of every loss of the journal."""
    points = read_points(run.journal)[0]
    return {(p.step, name): value for p in points for name, value in p.metrics.items() if name.endswith("loss")}


def own_store(place: Path) -> str:
    """The drill's MLflow store."""
    return f"sqlite:///{place / 'mlflow.db'}"
