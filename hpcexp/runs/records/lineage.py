"""Where a run comes from: the files in `lineage/`."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from hpcexp.files.documents import Count
from hpcexp.runs.records.status import Status


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


class WeightsOrigin(Struct, frozen=True, kw_only=True):
    """The file whose weights a run's model began with, and the run whose best ones they are."""

    path: str
    sha256: str
    run: str | None = None


class OriginFacts(Struct, frozen=True, kw_only=True):
    """`lineage/origin.json`: what was asked and by whom, and what the attempt started from."""

    attempt: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    command: str | None = None
    overrides: list[OriginOverride] = []
    experiment: OriginExperiment | None = None
    sweep: str | None = None
    continued: CheckpointOrigin | None = None
    initialised_from: CheckpointOrigin | None = None
    initial_weights: WeightsOrigin | None = None


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
