"""What a command provides to the jobs that it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from hpcexp.launch.base.display import Display
from hpcexp.launch.base.pruner import Pruner
from hpcexp.launch.base.rank_process import Process, Start
from hpcexp.launch.provenance.capture import Capture
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir


class Uploader(Protocol):
    """Uploads what runs record."""

    def begin(self, run: RunDir, plan: Plan) -> None:
        """A run starts; its directory has its plan and its state."""

    def end(self, run: RunDir, plan: Plan) -> None:
        """The run has its final state."""


@dataclass(frozen=True)
class LaunchContext:
    """The same for all jobs of a command."""

    start: Callable[[Start], Process]
    """Starts a rank."""
    catching: Callable[[], AbstractContextManager[Sequence[int]]]
    """Catches signals that ask the jobs to end, from a job's first file to its final state.

    The list grows as they arrive; at the second one ranks are killed."""
    display: Callable[[Plan], Display]
    """Shows a job's progress."""
    say: Callable[[Plan, str], None]
    """Prints a message about a job."""
    uploader: Uploader
    pruner: Pruner | None = None
    """Decides after each validation whether the job ends early."""
    capture: Capture = field(default_factory=Capture)
    """Writes the jobs' lineage."""
    is_one_of_many: bool = False
    """Whether a job without free devices raises DevicesBusyError and waits; a single job fails or shares cores."""
