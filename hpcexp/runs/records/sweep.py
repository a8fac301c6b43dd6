"""A sweep's files: what is asked, its ledger, its drivers, and what came of it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from hpcexp.files.documents import Count, ProcessId, Seconds
from hpcexp.runs.records.status import Owned
from hpcexp.schema.sweep import Budget, Search

MAX_LEDGER_BYTES = 1 << 30
"""Of a sweep's ledger and table: about a kilobyte a job."""


class DriverRecord(Owned, frozen=True, kw_only=True):
    """`drivers/TOKEN.json`: a process that works on a sweep, and touches this file."""

    host: str
    pid: ProcessId


class Spent(Struct, frozen=True, kw_only=True):
    """`spent/TOKEN.json`: what a driver's jobs have used of the budget."""

    hours: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0


class AxisRecord(Struct, frozen=True, kw_only=True):
    """An axis of a sweep: values as they are typed, or an interval."""

    values: list[str] | None = None
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    is_int: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        if self.values is None and (self.low is None or self.high is None):
            raise ValueError("an axis has neither values nor both ends")


class ObjectiveRecord(Struct, frozen=True):
    """A metric that a sweep is ranked by."""

    metric: str
    mode: Literal["min", "max"]


class SweepRecord(Struct, frozen=True, kw_only=True):
    """`sweep.json`: what is asked."""

    name: str
    question: str
    base: list[str] = []
    axes: dict[str, AxisRecord] = {}
    points: list[list[str]] = []
    seeds: list[int] = []
    objectives: list[ObjectiveRecord] = []
    search: Search | None = None
    budget: Budget = field(default_factory=Budget)
    is_fail_fast: bool = False
    project: str = ""
    command: str = ""


class LedgerLine(Struct, frozen=True, kw_only=True):
    """A line of `jobs.jsonl`."""

    job: Annotated[int, Meta(ge=1, le=2**53)]
    overrides: list[str]
    base: list[str] = []
    trial: Count | None = None
    signature: str
    run: str
    """Below the directory of runs; empty where the job could not be planned."""
    t: Seconds | None = None


class SweepBest(Struct, frozen=True, kw_only=True):
    """`best.json` of a sweep."""

    run: str = ""
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    seeds: Count = 0
