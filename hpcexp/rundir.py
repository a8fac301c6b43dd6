"""The directories of runs and sweeps: the names in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
    def sync_lock(self) -> Path:
        """Held by the process that syncs the directory to MLflow."""
        return self.path / ".sync.lock"

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
    def media(self) -> Path:
        """What user code has logged beside metrics: files, and for each rank an index of them."""
        return self.path / "media"

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
    def definition(self) -> Path:
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


def find_runs(root: Path) -> Iterator[RunDir]:
    """Every run below `root` (`root/EXPERIMENT/NAME`), in the order of their paths."""
    for plan in sorted(root.glob("*/*/plan.yaml")):
        yield RunDir(plan.parent)


def find_sweeps(root: Path) -> Iterator[SweepDir]:
    """Every sweep below `root` (`root/sweeps/NAME`), in the order of their paths."""
    for file in sorted(root.glob("sweeps/*/sweep.json")):
        yield SweepDir(file.parent)
