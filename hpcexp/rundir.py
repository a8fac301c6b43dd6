"""A run's directory: the names in it, and writes that are either whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcexp.errors import InUseError
from hpcexp.files.untrusted import open_lock, open_regular, read_text

_MAX_HOLDER_BYTES = 4096
"""Of a lock: the name of the process that has it."""
FINAL_STATES = ("finished", "pruned", "failed", "killed")


@dataclass(frozen=True)
class RecordDir:
    """Paths that a run's directory and a sweep's have in common. Making one touches nothing on disk."""

    path: Path

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def mlflow(self) -> Path:
        return self.path / "mlflow.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def delivery_lock(self) -> Path:
        """Held by the process that delivers the directory to MLflow."""
        return self.path / ".shipper.lock"

    @property
    def secret_uri(self) -> Path:
        """The tracking URI where it has a password or was changed since, for its owner alone."""
        return self.path / ".tracking"


@dataclass(frozen=True)
class RunDir(RecordDir):
    """Paths of one run."""

    @property
    def plan(self) -> Path:
        return self.path / "plan.yaml"

    @property
    def journal(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def system(self) -> Path:
        """A journal of its machine."""
        return self.path / "system.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def confusion(self) -> Path:
        return self.path / "confusion.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The `last` before, for when that one is damaged."""
        return self.checkpoints / "previous.ckpt"

    @property
    def lineage(self) -> Path:
        """Where the run comes from: code, environment, machine, data, parents; and the seals of its attempts."""
        return self.path / "lineage"

    @property
    def beat(self) -> Path:
        """A file that the supervisor touches, for those who cannot see its process."""
        return self.path / "launch" / "beat"

    @property
    def cancel(self) -> Path:
        """Asks the supervisor of the attempt that is running to end it."""
        return self.path / "launch" / "cancel"

    @property
    def secrets(self) -> Path:
        """What is masked in the plan, for its owner alone; none where nothing is."""
        return self.path / ".secrets"

    @property
    def mark(self) -> Path:
        """That the user who reads it made the run (`hpcexp.runs.mark`)."""
        return self.path / ".mark"

    def best_of(self, step: int) -> Path:
        """The best weights as of a checkpoint that names their step, while that checkpoint may be gone back to."""
        return self.checkpoints / f"best-{step}.ckpt"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"


@dataclass(frozen=True)
class SweepDir(RecordDir):
    """Paths of one sweep."""

    @property
    def root(self) -> Path:
        """The directory of runs that it lies in."""
        return self.path.absolute().parent.parent

    @property
    def asked(self) -> Path:
        """What is asked: question, axes, objectives."""
        return self.path / "sweep.json"

    @property
    def jobs(self) -> Path:
        """The ledger of its jobs."""
        return self.path / "jobs.jsonl"

    @property
    def table_csv(self) -> Path:
        return self.path / "table.csv"

    @property
    def table_md(self) -> Path:
        return self.path / "table.md"

    @property
    def best(self) -> Path:
        """The job that did best: its run, parameters and metrics."""
        return self.path / "best.json"

    @property
    def cancel(self) -> Path:
        """A file whose presence asks every driver of the sweep to stop."""
        return self.path / "cancel"


def write_atomic(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace `path` by `content`, durably: readers and crashes see the old file or the new one.

    `mode` is what the file may be read and written by, less the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_half_written(path: Path) -> bool:
    """Whether `write_atomic` was killed in the middle of it."""
    return re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}", path.name) is not None


def second_name(path: Path, name: Path) -> None:
    """Let `name` be the file `path` too, in place of what it was; a copy where the file system has no hard links."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # rename(2) leaves both where they are the same file already


def write_json(path: Path, value: Mapping[str, Any], mode: int = 0o666) -> None:
    """`write_atomic` of a JSON object that people can read."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode)


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_runs(root: Path) -> Iterator[RunDir]:
    """Every run below `root` (`root/EXPERIMENT/NAME`), in the order of their paths."""
    for plan in sorted(root.glob("*/*/plan.yaml")):
        yield RunDir(plan.parent)


def find_sweeps(root: Path) -> Iterator[SweepDir]:
    """Every sweep below `root` (`root/sweeps/NAME`), in the order of their paths."""
    for asked in sorted(root.glob("sweeps/*/sweep.json")):
        yield SweepDir(asked.parent)


@contextmanager
def held(lock: Path, what: str, fix: str = "wait for it, or end it") -> Iterator[int]:
    """Hold `lock` against other processes of this machine; InUseError names the one that has it.

    What is given is its descriptor: who inherits it holds the lock, too.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_lock(lock), "r+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            holder = file.read(_MAX_HOLDER_BYTES).strip() or "another process"
            raise InUseError(f"{what} {holder}.\nFix: {fix}.") from e
        if os.fstat(file.fileno()).st_nlink == 1:  # otherwise it is somebody's file, too
            file.truncate(0)
            file.write(process_name(os.getpid()))
            file.flush()
        yield file.fileno()


def holder_of(lock: Path) -> str | None:
    """The process that has `lock`, as `process 17 on ada`; None where none has it."""
    try:
        with open_regular(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return read_text(lock, _MAX_HOLDER_BYTES).strip() or "another process"
    return None


def process_name(pid: int) -> str:
    """A process of this machine, as `holder_of` names it."""
    return f"process {pid} on {socket.gethostname()}"


@contextmanager
def held_within(
    timeout_s: float, lock: Path, what: str, waiting: Callable[[InUseError], object] = lambda _: None
) -> Iterator[None]:
    """`held`, waiting for `timeout_s` while another process has the lock. `waiting` gets who has it, once."""
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        is_first = True
        while True:
            try:
                stack.enter_context(held(lock, what))
                break
            except InUseError as e:
                if time.monotonic() >= deadline:
                    raise
                if is_first:
                    is_first = False
                    waiting(e)
                time.sleep(0.05)
        yield
