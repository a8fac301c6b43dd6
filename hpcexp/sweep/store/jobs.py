"""Jobs of a sweep, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.pruner import Pruner
from hpcexp.plan import Plan
from hpcexp.sweep.store.ledger import LedgerEntry


@dataclass(frozen=True)
class Job:
    """A planned job."""

    entry: LedgerEntry
    plan: Plan
    problem: str = ""
    """Why it cannot be run: its directory is damaged, or it could not be planned and its plan is another job's."""


class JobSource(Protocol):
    """Where jobs come from."""

    is_known: bool
    """Whether jobs are known beforehand; otherwise the next one is better thought of late."""

    def next(self) -> Job | None:
        """The next job; None where there is none now."""

    def is_over(self) -> bool:
        """Whether there will be no more."""

    def pruner(self, job: Job) -> Pruner | None:
        """Who says whether a job is to end early."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """What became of a job, whoever ran it."""


@dataclass
class Fixed:
    """A source of jobs that are known beforehand."""

    jobs: Sequence[Job]
    is_known = True
    _given: int = 0

    def next(self) -> Job | None:
        """In their order."""
        if self.is_over():
            return None
        self._given += 1
        return self.jobs[self._given - 1]

    def is_over(self) -> bool:
        return self._given >= len(self.jobs)

    def pruner(self, job: Job) -> None:
        """Every job runs to its end."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Nobody asks."""
