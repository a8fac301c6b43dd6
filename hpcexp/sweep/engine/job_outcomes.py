"""How the jobs of a sweep end: recorded, shown as they happen, and put together as results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpcexp.launch.base.display import Display
from hpcexp.launch.base.outcome import Outcome
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.engine.job_entries import JobEntries
from hpcexp.sweep.engine.job_uploads import JobUploads
from hpcexp.sweep.report.live_view import SweepLines
from hpcexp.sweep.report.ranking import values_text
from hpcexp.sweep.spec.spec import Objective
from hpcexp.sweep.store.jobs import Job
from hpcexp.sweep.store.ledger import LedgerEntry
from hpcexp.sweep.store.results import Result, not_recorded, read_result


class JobOutcomes:
    """The driver's view of a sweep: keeps what happens and shows it."""

    def __init__(
        self, objectives: tuple[Objective, ...], entries: JobEntries, uploads: JobUploads, view: SweepLines
    ) -> None:
        self.by_number: dict[int, Outcome] = {}
        self.misses = ""
        """Why the first finished job cannot be ranked; empty if it can."""
        self._objectives, self._entries, self._uploads, self._view = objectives, entries, uploads, view
        self._old: set[int] = set()
        self._is_ranked: bool | None = None
        """Whether jobs record what they are ranked by; None before the first has finished."""

    def began(self, job: Job) -> None:
        """A job was started."""
        self._view.began(job)

    def display(self, job: Job) -> Display:
        """Shows a job's progress."""
        return self._view.display(job)

    def say(self, job: Job | None, text: str) -> None:
        """Print a message about a job or about the sweep."""
        self._view.say(job, text)

    def ended(self, job: Job, outcome: Outcome, *, is_old: bool) -> None:
        """A job has ended, or need not run."""
        self.by_number[job.entry.job] = outcome
        if is_old:
            self._old.add(job.entry.job)
        if outcome.state is RunState.SKIPPED:
            self._uploads.add_skipped(job)
        if outcome.state is RunState.FINISHED and self._is_ranked is None:
            self.misses = not_recorded(RunDir(Path(job.plan.run_dir)), self._objectives)
            self._is_ranked = not self.misses
        is_over = outcome.state in (RunState.FINISHED, RunState.PRUNED) and not is_old
        values = read_result(job.entry, self._objectives).values if is_over else ()
        self._view.ended(job, outcome, values_text(values, self._objectives), is_old=is_old)

    def refresh(self, waiting: int, why: str) -> None:
        """Time has passed."""
        self._uploads.tend()
        self._view.refresh(waiting, why)

    @property
    def is_idle(self) -> bool:
        """Whether all jobs had ended before this command."""
        return bool(self._old) and len(self._old) == len(self.by_number)

    @property
    def has_failed(self) -> bool:
        """Whether a job did not finish, for another reason than pruning."""
        return any(outcome.state in (RunState.FAILED, RunState.KILLED) for outcome in self.by_number.values())

    def num_failed_before(self) -> int:
        """Jobs that failed in an earlier command and were not tried again."""
        return sum(self.by_number[number].state is RunState.FAILED for number in self._old)

    def results(self, entries: Iterable[LedgerEntry]) -> list[Result]:
        """From the run directories; what only this command knows comes first."""
        return [self._result(entry) for entry in entries]

    def _result(self, entry: LedgerEntry) -> Result:
        outcome = self.by_number.get(entry.job)
        if outcome is None and entry.job in self._entries.entered:
            return replace(read_result(entry, ()), state=RunState.NOT_RUN)
        if outcome is not None and outcome.state is RunState.FAILED:
            return replace(read_result(entry, self._objectives), state=RunState.FAILED, cause=outcome.cause)
        return read_result(entry, self._objectives)
