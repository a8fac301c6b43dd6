"""What a run resulted in: `summary.json` and `confusion.json`."""

from __future__ import annotations

from msgspec import Struct

from hpcexp.files.documents import Count, Duration
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read


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


def read_summary(run: RunDir) -> Summary:
    """`summary.json`."""
    return read(run.summary, Summary)
