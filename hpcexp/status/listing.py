"""Runs as their directories tell of them, for people: `hpcexp runs` and `hpcexp show`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.plan import load_head
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.records.files import read_or_none
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.runs.records.sync import SyncRecord
from hpcexp.status.state import current_state, elapsed_s, silence_text

STATES = tuple(str(state) for state in RunState if state.is_recorded)


@dataclass(frozen=True)
class RunRow:
    """One run in a list."""

    path: Path
    experiment: str
    name: str
    signature: str
    state: RunState
    """One of STATES; `killed` also where a run's supervisor died before it could say so."""
    started: float | None
    """Unix seconds."""
    duration_s: float | None
    """Until its end, or until now while it runs; None where that is not known."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final metrics by their names (`test/acc`); empty until the run has finished."""
    cause: str | None = None
    """Why the run did not finish, where it did not; of one that may be running, that it was not heard of for long."""
    synced: bool | None = None
    """Whether MLflow has everything; None where nothing was sent yet."""


def list_runs(root: Path) -> tuple[list[RunRow], list[str]]:
    """Every run below `root`, the latest last; of those that are damaged what is wrong with each."""
    rows, problems = [], []
    for run in find_runs(root):
        try:
            rows.append(read_row(run))
        except RunError as e:
            problems += [str(e)] if run.plan.exists() else []  # else it was removed meanwhile
        except OSError as e:
            problems.append(f"{e.filename or run.path} cannot be read: {e.strerror}.")
    return sorted(rows, key=lambda row: (row.started or 0.0, row.path)), problems


def read_row(run: RunDir) -> RunRow:
    """What the directory of `run` tells."""
    status, head = read_status(run), load_head(run.plan)
    state = current_state(run, status)
    synced = read_or_none(run.mlflow, SyncRecord)
    return RunRow(
        path=run.path,
        experiment=str(head.get("experiment", run.path.parent.name)),
        name=str(head.get("name", run.path.name)),
        signature=str(head.get("signature", "")),
        state=state,
        started=status.started,
        duration_s=elapsed_s(state, status),
        metrics=dict(read_summary(run).test),
        cause=status.cause or silence_text(run, status, state) or None,
        synced=None if synced is None else synced.synced,
    )
