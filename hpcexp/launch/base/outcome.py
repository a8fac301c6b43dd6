"""How a job ended, for the command that ran it."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from hpcexp.runs.records import RunState


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: RunState
    """finished, pruned, failed or killed; skipped or planned where nothing ran."""
    cause: str
    """Why it did not finish, in the words of the rank that failed first; empty where it did."""
    exit: int
    """Exit status for the command: 0, 2 for a mistake the user can mend, 1 for a failure, 128 + n for a signal."""
    signal: int = 0
    """What killed a rank from outside (`kill -9`, no memory), where the job failed of that: it may be repeated."""


def stopped_by(number: int) -> Outcome:
    """Of a job that a signal ended."""
    return Outcome(RunState.KILLED, f"stopped by {signal.Signals(number).name}", 128 + number)
