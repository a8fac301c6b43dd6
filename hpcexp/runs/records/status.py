"""State and owner of a run or sweep: `status.json`."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from hpcexp.files.documents import Count, Duration, ProcessId, Seconds
from hpcexp.rundir import RecordDir
from hpcexp.runs.records.files import read


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


def read_status(record: RecordDir) -> Status:
    """`status.json`; state `planned` where it has not started."""
    return read(record.status, Status)
