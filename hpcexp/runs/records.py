"""The files of runs and sweeps as types: each is read and checked here, and written from the same type.

A file that is missing reads as a record of defaults. One that is damaged raises `UnusableFileError`, which names it; a
caller that lists many leaves it out and shows the rest. Fields that a later version adds are passed over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, field

from hpcexp.files.atomic import write_json
from hpcexp.files.documents import Count, Duration, ProcessId, Seconds, decode, plain, read_json, read_plain
from hpcexp.files.untrusted import read_bytes
from hpcexp.rundir import RecordDir, RunDir
from hpcexp.schema.sweep import Budget, Search

R = TypeVar("R", bound=Struct)

MAX_LEDGER_BYTES = 1 << 30
"""Of a sweep's ledger and table: about a kilobyte a job."""


class RunState(StrEnum):
    """How far a run, a sweep or a job of a sweep is."""

    PLANNED = "planned"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"
    KILLED = "killed"
    WAITING = "waiting"
    """A job of a sweep that has not started."""
    NOT_RUN = "not run"
    """A job that the sweep ended before."""
    SKIPPED = "skipped"
    """A job that had finished before the command."""

    @property
    def is_final(self) -> bool:
        """Whether an attempt has ended."""
        return self in _FINAL

    @property
    def is_recorded(self) -> bool:
        """Whether `status.json` may say it; the others are a sweep's view of its jobs."""
        return self not in _UNRECORDED


_FINAL = frozenset({RunState.FINISHED, RunState.PRUNED, RunState.FAILED, RunState.KILLED})
_UNRECORDED = frozenset({RunState.WAITING, RunState.NOT_RUN, RunState.SKIPPED})


class Owned(Struct, frozen=True, kw_only=True):
    """What names the process that works on a directory (`hpcexp.runs.owner`)."""

    host: str | None = None
    pid: ProcessId | None = None
    boot: str | None = None
    """Id of the boot of its machine."""
    spaces: str | None = None
    """The namespaces that `pid` and `ticks` are counted in."""
    ticks: Count | None = None
    """Its start in clock ticks since boot."""
    token: str | None = None
    """Names one attempt of one process."""


class Status(Owned, frozen=True, kw_only=True):
    """`status.json` of a run or a sweep."""

    state: RunState = RunState.PLANNED
    begun: Seconds | None = None
    """Of a sweep: when its first driver started."""
    started: Seconds | None = None
    started_boot_s: Duration | None = None
    """`started` in seconds since boot."""
    ended: Seconds | None = None
    took_s: Duration | None = None
    """Seconds from start to end, by the process that lived through them."""
    attempt: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    cause: str | None = None
    """Why it did not finish."""
    exit: Annotated[int, Meta(ge=-255, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    """What killed a rank from outside, where the run failed of that."""

    def __post_init__(self) -> None:
        if not self.state.is_recorded:
            raise ValueError(f"state is {self.state}")

    @property
    def seconds(self) -> float | None:
        """How long the attempt took, never negative; None where that is not known."""
        if self.took_s is not None:
            return self.took_s
        # Whoever found the supervisor dead wrote the end, by the clock of another process.
        return None if self.started is None or self.ended is None else max(0.0, self.ended - self.started)

    @property
    def ended_at(self) -> float:
        """The end in unix seconds, as long after the start as the attempt took; now where it is not known."""
        if self.started is not None and self.seconds is not None:
            return self.started + self.seconds
        return max(self.started or 0.0, time.time() if self.ended is None else self.ended)


class DriverRecord(Owned, frozen=True, kw_only=True):
    """`drivers/TOKEN.json`: a process that works on a sweep, and touches this file."""

    host: str
    pid: ProcessId


class Spent(Struct, frozen=True, kw_only=True):
    """`spent/TOKEN.json`: what a driver's jobs have used of the budget."""

    hours: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0


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


class Best(Struct, frozen=True, kw_only=True):
    """The best validation of a run."""

    monitor: str
    value: float | None
    """None where it was not a finite number."""
    epoch: Count = 0
    global_step: Count | None = None
    path: str | None = None
    """Its checkpoint, within the run directory."""
    sha256: str | None = None
    bytes: Count | None = None


class Summary(Struct, frozen=True, kw_only=True):
    """`summary.json`: what a run resulted in."""

    best: Best | None = None
    """None where nothing was validated."""
    test: dict[str, float] = {}
    epochs: Count | None = None
    steps: Count | None = None
    diverged: bool = False
    durations: dict[str, Duration | None] = {}
    num_params: Count | None = None
    signature: str = ""
    world_size: Count | None = None
    versions: dict[str, str] = {}
    weights_sha256: str | None = None
    pruned: Count | None = None
    """The epoch that a search ended it at."""
    ended_at: Count | None = None
    """The step that it was asked to end at."""


class Confusion(Struct, frozen=True):
    """`confusion.json`: predictions of the test data, a row for each true class."""

    labels: list[str] = []
    matrix: list[list[Count]] = []

    def __post_init__(self) -> None:
        size = len(self.labels)
        if len(self.matrix) != size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"the matrix is not {size} × {size}")


class Patch(Struct, frozen=True):
    """The uncommitted changes that a run kept."""

    file: str
    sha256: str


class CodeFacts(Struct, frozen=True, kw_only=True):
    """`lineage/code.json`."""

    commit: str | None = None
    dirty: bool | None = None
    remote: str | None = None
    digest: str | None = None
    files: dict[str, str] = {}
    """Source file → SHA-256."""
    edited_since_planning: list[str] = []
    patch: Patch | None = None
    left_out: dict[str, str] = {}
    """Changed file that is not in the patch → why."""
    problem: str | None = None


class ImportedFacts(Struct, frozen=True, kw_only=True):
    """`lineage/job.json`: what the first rank imported and ran on."""

    imported: dict[str, str] = {}
    edited_meanwhile: list[str] = []
    variables: dict[str, Any] = {}
    torch: dict[str, Any] = {}


class PythonFacts(Struct, frozen=True, kw_only=True):
    """The interpreter of a run."""

    version: str = ""
    executable: str = ""
    build: str = ""


class EnvironmentFacts(Struct, frozen=True, kw_only=True):
    """`lineage/environment.json`."""

    python: PythonFacts = field(default_factory=PythonFacts)
    platform: str = ""
    libc: str = ""
    packages: dict[str, str] = {}
    variables: dict[str, Any] = {}


class DataFileRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of a data set."""

    path: str
    """Bytes that are no UTF-8 are escaped."""
    bytes: Count
    sha256: str | None = None
    modified_ns: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    """Time of its last change, where that counts and not its content."""
    rows: Count | None = None


class DataRecord(Struct, frozen=True, kw_only=True):
    """`lineage/data.json`."""

    source: str | None = None
    fingerprint: str | None = None
    files: list[DataFileRecord] = []
    num_files: Count = 0
    num_read: Count = 0
    bytes: Count = 0
    digest: str | None = None
    rows: dict[str, Count] | None = None
    schema: dict[str, Any] | None = None
    note: str | None = None
    problem: str | None = None


class CheckpointOrigin(Struct, frozen=True, kw_only=True):
    """The checkpoint that an attempt started from."""

    checkpoint: str
    step: Count
    crc32: Annotated[int, Meta(ge=0, lt=2**32)] | None = None
    mlflow_run_id: str | None = None
    why: str | None = None


class OriginOverride(Struct, frozen=True):
    """An override and where it was given."""

    override: str
    source: str = field(name="from")


class OriginExperiment(Struct, frozen=True, kw_only=True):
    """The experiment's file and what it sets."""

    file: str
    sha256: str
    sets: dict[str, Any] = {}


class OriginFacts(Struct, frozen=True, kw_only=True):
    """`lineage/origin.json`: what was asked and by whom, and what the attempt started from."""

    attempt: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    command: str | None = None
    overrides: list[OriginOverride] = []
    experiment: OriginExperiment | None = None
    sweep: str | None = None
    continued: CheckpointOrigin | None = None
    initialised_from: CheckpointOrigin | None = None


class SealEntry(Struct, frozen=True, kw_only=True):
    """A file as a seal records it: by SHA-256, or by the CRC-32 of a large checkpoint."""

    bytes: Count
    sha256: str | None = None
    crc32: Annotated[int, Meta(ge=0, lt=2**32)] | None = None
    is_part: bool = False
    """Whether it is one of the files of a sharded checkpoint."""


class Seal(Struct, frozen=True, kw_only=True):
    """A line of `lineage/manifest.jsonl`: what an attempt left."""

    attempt: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    status: Status = field(default_factory=Status)
    previous: str = ""
    files: dict[str, SealEntry] = {}
    sha256: str = ""


class GpuFacts(Struct, frozen=True, kw_only=True):
    """A GPU of the machine."""

    index: Count
    name: str
    uuid: str | None = None
    memory_bytes: Count | None = None


class HardwareFacts(Struct, frozen=True, kw_only=True):
    """`lineage/hardware.json`."""

    cpu: str = ""
    cores: Count | None = None
    cores_of_machine: Count | None = None
    memory_nodes: Count | None = None
    memory_bytes: Count | None = None
    gpus: list[GpuFacts] = []
    driver: str | None = None
    cuda_of_driver: str | None = None
    problem: str | None = None


class RemoteFailure(Struct, frozen=True, kw_only=True):
    """`failed.json`: what ended the job on one of its machines."""

    host: str
    cause: str
    time: Seconds
    signal: Annotated[int, Meta(ge=0, le=64)] = 0
    """What killed a rank there from outside."""


class PlanRefusal(Struct, frozen=True, kw_only=True):
    """What a machine answers whose plan differs from the one that the leading machine shows."""

    to: str
    """Digest of the plan that is refused."""
    differs: str


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


def read(path: Path, kind: type[R]) -> R:
    """The record in `path`; one of defaults where there is no file. UnusableFileError where it is damaged."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return kind()


def read_or_none(path: Path, kind: type[R]) -> R | None:
    """The record in `path`; None where there is no file. UnusableFileError where it is damaged."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None


def write(path: Path, record: Struct, mode: int = 0o666) -> None:
    """Replace the record in `path`, durably."""
    write_json(path, plain(record), mode)


def read_status(record: RecordDir) -> Status:
    """`status.json`; state `planned` where it has not started."""
    return read(record.status, Status)


def read_sync_record(record: RecordDir) -> SyncRecord:
    """`mlflow.json`."""
    return read(record.mlflow, SyncRecord)


def read_summary(run: RunDir) -> Summary:
    """`summary.json`."""
    return read(run.summary, Summary)


def read_secrets(run: RunDir) -> Mapping[str, Any]:
    """What is masked in the run's plan, by dotted name."""
    return read_plain(run.secrets)


def lines(path: Path, kind: type[R], limit: int) -> Iterator[tuple[int, R | None]]:
    """Number, from 1, and record of each line of a file; None for a line that is damaged or torn.

    Nothing where there is no file. UnusableFileError where it is no regular file, or larger than `limit` bytes.
    """
    try:
        content = read_bytes(path, limit)
    except FileNotFoundError:
        return
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield number, decode(line, kind)
        except ValueError:
            yield number, None
