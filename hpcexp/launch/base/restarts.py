"""How often a job resumes after it was killed from outside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hpcexp.launch.base.outcome import Outcome
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_note


@dataclass
class Restarts:
    """A killed job resumes, unless it has been killed too often without progress."""

    most: int
    """`launch.retries`."""
    _step: int = -1
    _times: int = 0

    def count(self, plan: Plan, outcome: Outcome) -> tuple[bool, Outcome]:
        """Whether the job that ended so resumes; the outcome, whose cause tells how often it was killed in a row."""
        note = read_note(RunDir(Path(plan.run_dir)).last)
        step = (note.step or 0) if note else -1
        self._times = 1 if step > self._step else self._times + 1
        self._step = step
        first, newline, rest = outcome.cause.partition("\n")
        if self._times <= self.most:
            where = f"resumes from step {step}" if note else "begins again"
            return True, replace(outcome, cause=f"{first}: {where} (launch.retries: {self._times} of {self.most})")
        if self._times > 1:
            first += f", {self._times} times in a row without getting further (launch.retries={self.most})"
        return False, replace(outcome, cause=f"{first}{newline}{rest}")
