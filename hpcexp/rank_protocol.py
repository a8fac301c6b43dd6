"""What a launcher and the ranks of its job say to each other: the ranks' environment, events up, verdicts down.

A rank's process gets its place and its pipes by environment variables (`RankEnv`). It reports by events, one JSON
object a line, on a pipe that it never waits for; the supervisor's verdicts come down another pipe. Nothing else passes
between them but signals, exit statuses and the run directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal, TypeVar

import msgspec

from hpcexp.errors import RunError

M = TypeVar("M")
_MAX_LINE = 1 << 20
"""Bytes of a line; a longer one is dropped. The longest that a rank writes has its metrics."""


def _variable(name: str, default: Any = None) -> Any:
    return field(default=default, metadata={"variable": name})


@dataclass(frozen=True)
class RankEnv:
    """The place of a rank in its job, by the names that torch.distributed reads, and its ways to the supervisor.

    None where the environment does not say; files are numbers of this process's open files.
    """

    rank: int | None = _variable("RANK")
    local_rank: int | None = _variable("LOCAL_RANK")
    node_rank: int | None = _variable("NODE_RANK")
    world_size: int | None = _variable("WORLD_SIZE")
    local_world_size: int | None = _variable("LOCAL_WORLD_SIZE")
    master_addr: str | None = _variable("MASTER_ADDR")
    master_port: int | None = _variable("MASTER_PORT")
    cores: str | None = _variable("HPCEXP_CORES")
    """Cores of the ranks of this node by local rank: `0-3;4-7` for two; empty for any."""
    pruning_metric: str | None = _variable("HPCEXP_PRUNING_METRIC")
    """The metric that rank 0 reports after each validation, and waits for a verdict."""
    last_step: int | None = _variable("HPCEXP_LAST_STEP")
    """Training ends where the step after this one would begin."""
    supervisor_fd: int | None = _variable("HPCEXP_SUPERVISOR_FD")
    """A pipe of which only the supervisor holds the other end: its end is the supervisor's death."""
    events_fd: int | None = _variable("HPCEXP_EVENTS_FD")
    """Takes events; all ranks of a node share it."""
    verdicts_fd: int | None = _variable("HPCEXP_VERDICTS_FD")
    """Yields verdicts, for rank 0."""
    store_fd: int | None = _variable("HPCEXP_STORE_FD")
    """A listening socket at `master_port`, for rank 0: the port cannot be lost between choosing and binding it."""
    supervisor_path: str | None = _variable("HPCEXP_SUPERVISOR_PATH")
    """As `supervisor_fd`, to be opened: agents close files that they do not know."""
    events_path: str | None = _variable("HPCEXP_EVENTS_PATH")
    log_by_rank: bool | None = _variable("HPCEXP_LOG_BY_RANK")
    """Whether the rank opens its log itself, as nobody knew its number when its process started."""

    def to_environ(self) -> dict[str, str]:
        """The variables that say this."""
        values = {variable: getattr(self, name) for name, variable in VARIABLES.items()}
        return {variable: _text(value) for variable, value in values.items() if value is not None}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> RankEnv:
        """What the variables of a rank's process say."""
        texts = {name: environ[variable] or None for name, variable in VARIABLES.items() if variable in environ}
        try:
            return msgspec.convert(texts, cls, strict=False)
        except msgspec.ValidationError as e:
            raise RunError(f"The environment gives this rank no place: {e}.\nFix: unset RANK and the like.") from e


VARIABLES: Mapping[str, str] = {f.name: f.metadata["variable"] for f in fields(RankEnv)}
"""Field of `RankEnv` → environment variable."""


class Started(msgspec.Struct, frozen=True, tag="started", tag_field="event"):
    """The rank's process runs; before anything is imported."""

    rank: int
    pid: int


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="event", omit_defaults=True):
    """Where training is, at most four times a second. Of ranks other than 0 only `rank` and `step`: a sign of life."""

    rank: int
    step: int
    """Steps that are done."""
    steps: int | None = None
    """Those that are planned; None where the data's length is unknown."""
    phase: str | None = None
    """train, validate or test; None for a sign of life."""
    epoch: int = 0
    """From 1."""
    epochs: int = 0
    """Those that are planned; 0 where this is unknown."""
    loss: float | None = None
    metrics: Mapping[str, float | None] = {}
    """None where a value is not finite."""


class Report(msgspec.Struct, frozen=True, tag="report", tag_field="event"):
    """The value that a trial is judged by, after a validation. Rank 0 then waits for a verdict."""

    rank: int
    epoch: int
    """Epochs that were trained."""
    value: float | None
    """None where it is not finite."""


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="event"):
    """The rank ends of an error."""

    rank: int
    kind: Literal["config", "data", "run", "crash"]
    """config and data: mistakes that the user can mend in what was asked for."""
    message: str


class Stopped(msgspec.Struct, frozen=True, tag="stopped", tag_field="event"):
    """The rank ends on a signal, with a checkpoint."""

    rank: int
    signal: int


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="event"):
    """The rank has reached the end of the run."""

    rank: int


Event = Started | Progress | Report | Failed | Stopped | Done


class Verdict(msgspec.Struct, frozen=True):
    """The answer to a report."""

    epoch: int
    prune: bool
    """Whether training ends here."""


def send(fd: int, message: Event | Verdict) -> None:
    """Write a message down a pipe. Nothing is sent where the pipe is full, or where nobody reads it any more."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(fd, msgspec.json.encode(message) + b"\n")


class LineReader(Generic[M]):
    """Messages from a pipe, whole lines only. Lines that are no message are passed over.

    Such a line arises where two ranks write at once, and longer than a pipe keeps whole (PIPE_BUF), or where a user's
    code writes into the pipe.
    """

    def __init__(self, fd: int, kind: Any) -> None:
        """`kind`: the type of message."""
        self.fd = fd
        self.is_open = True
        """Whether anybody can still write."""
        self._decoder = msgspec.json.Decoder(kind)
        self._rest = b""

    def read(self) -> Iterator[M]:
        """What one read yields; BlockingIOError where that is nothing yet."""
        chunk = os.read(self.fd, 65536)
        self.is_open = bool(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            self._rest = b""
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError, RecursionError):
                yield self._decoder.decode(line)


def event_reader(fd: int) -> LineReader[Event]:
    """For the supervisor."""
    return LineReader(fd, Event)


def verdict_reader(fd: int) -> LineReader[Verdict]:
    """For rank 0."""
    return LineReader(fd, Verdict)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


_FOREIGN_NAMES = frozenset(
    (
        # torchrun, and whoever follows its convention: Kubeflow, Ray, accelerate
        *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        # Lightning
        *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "STANDALONE_PORT"),
        # Slurm: a task of a step
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE"),
        *("SLURM_TASKS_PER_NODE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
        # MPI: a process that finds these tries to reach a manager that is not its own
        *("OMPI_UNIVERSE_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PALS_RANKID", "PALS_LOCAL_RANKID"),
        # hpcexp: a rank whose code starts hpcexp
        *VARIABLES.values(),
    )
)
_FOREIGN_PREFIXES = (
    "TORCHELASTIC_",
    "PET_",  # arguments of torchrun
    "PL_TRAINER_",  # arguments of Lightning's Trainer that a plan does not name
    "JSM_NAMESPACE_",  # LSF's jsrun
    "OMPI_COMM_WORLD_",
    "MV2_COMM_WORLD_",
    "PMI_",
    "PMIX_",
)


def is_foreign(name: str) -> bool:
    """Whether a variable gives a process a place in a job of another launcher, or of another command of hpcexp.

    hpcexp starts the ranks of its jobs itself. What a launcher left in a user's shell (inside `salloc`, `torchrun`,
    `mpirun`, a rank of another job) must not reach them. Variables that describe the allocation (SLURM_JOB_ID,
    LSB_JOBID) or configure a library (OMPI_MCA_*, NCCL_*) stay.
    """
    return name in _FOREIGN_NAMES or name.startswith(_FOREIGN_PREFIXES)


def without_foreign(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that hpcexp starts."""
    return {name: value for name, value in environment.items() if not is_foreign(name)}


def remove_foreign(environment: MutableMapping[str, str]) -> None:
    """Remove them from this process's environment, before it imports what reads them."""
    for name in list(filter(is_foreign, environment)):
        del environment[name]
