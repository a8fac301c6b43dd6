"""How a job ended, for the command that ran it."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from hpcexp.runs.records.status import RunState


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: RunState
    """finished, pruned, failed or killed; skipped or planned where nothing ran."""
    cause: str
    """Why it did not finish, in the words of the rank that failed first; empty if it finished."""
    exit: int
    """Exit status for the command: 0, 2 for a mistake the user can fix, 1 for a failure, 128 + n for a signal."""
    signal: int = 0
    """The signal that killed a rank from outside (`kill -9`, out of memory); such a job may be retried."""


def stopped_by(number: int) -> Outcome:
    """The outcome of a job that a signal ended."""
    return Outcome(RunState.KILLED, f"stopped by {signal.Signals(number).name}", 128 + number)
