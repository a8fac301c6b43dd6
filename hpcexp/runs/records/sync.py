"""How far a run or sweep is in MLflow: `mlflow.json`."""

from __future__ import annotations

from msgspec import Struct

from hpcexp.files.documents import Count, Seconds
from hpcexp.rundir import RecordDir
from hpcexp.runs.records.files import read
from hpcexp.runs.records.status import RunState


class Membership(Struct, frozen=True):
    """The sweep that a run belongs to."""

    path: str
    """The sweep's directory."""
    axes: dict[str, str]
    """The run's value on each axis, as it is typed."""


class SyncRecord(Struct, kw_only=True):
    """`mlflow.json` of a run or a sweep: how far it is in MLflow."""

    tracking_uri: str | None = None
    """Without its password."""
    experiment: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    token: str | None = None
    """Finds an MLflow run again that was made and whose id was not noted."""
    offset: Count = 0
    """Bytes of the journal that MLflow has."""
    system_offset: Count = 0
    synced: bool = False
    pictured: bool = False
    problem: str | None = None
    state: RunState | None = None
    ended: Seconds | None = None
    user: str | None = None
    sweep: Membership | None = None
    parent: str | None = None
    """The MLflow run of its sweep."""
    model_id: str | None = None
    keys: dict[str, str] = {}
    """The run's metrics by name → what MLflow has them as."""
    media: dict[str, Count] = {}
    """Index of what user code has logged → bytes of it that MLflow has."""
    renamed: dict[str, dict[str, str]] = {}
    """Kind → name → what MLflow has instead, as the message said."""


def read_sync_record(record: RecordDir) -> SyncRecord:
    """`mlflow.json`."""
    return read(record.mlflow, SyncRecord)
