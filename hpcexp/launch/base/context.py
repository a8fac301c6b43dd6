"""What a command arranges for the jobs that it runs."""

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
    """Syncs what runs record."""

    def begin(self, run: RunDir, plan: Plan) -> None:
        """A run goes off: its directory has its plan and its state."""

    def end(self, run: RunDir, plan: Plan) -> None:
        """The run has its final state."""


@dataclass(frozen=True)
class LaunchContext:
    """The same for all jobs of a command."""

    start: Callable[[Start], Process]
    """How ranks are started."""
    catching: Callable[[], AbstractContextManager[Sequence[int]]]
    """Signals that ask the jobs to end, as they come, from a job's first file to its final state.

    At a second one ranks are killed."""
    display: Callable[[Plan], Display]
    """What shows a job's progress."""
    say: Callable[[Plan, str], None]
    """Tells what is to be known of a job beside its progress."""
    uploader: Uploader
    pruner: Pruner | None = None
    """Asked after each validation whether the job is to end."""
    capture: Capture = field(default_factory=Capture)
    """Keeps where the jobs come from."""
    is_one_of_many: bool = False
    """Whether a job that finds no free devices is left for later, where a single one would say so or share cores."""
