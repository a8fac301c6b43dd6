"""What the directories of a sweep's jobs tell a driver: whether a job need not run, and how it ended elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.restarts import Restarts
from hpcexp.rundir import RunDir
from hpcexp.runs.clock import boottime
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.status.state import current_state, doubt_s, is_done
from hpcexp.sweep.engine.policy import Policy
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.jobs import Job


@dataclass
class Attempts:
    """Attempts at the jobs, of this driver and of others, before it and beside it."""

    claims: Claims
    policy: Policy
    _first_seen: dict[int, object] = field(default_factory=dict)
    """By job: the attempt in its directory when this driver first looked."""
    _restarts: dict[int, Restarts] = field(default_factory=dict)
    """By job: how often it was killed since this driver started."""
    _silent_since: dict[int, float] = field(default_factory=dict)
    """By job: since when its driver elsewhere has seemed dead, by `boottime`."""

    def before(self, job: Job) -> Outcome | None:
        """The outcome of a job that need not run; None if it runs."""
        if job.problem:
            return Outcome(RunState.FAILED, job.problem, 2)
        run = RunDir(Path(job.plan.run_dir))
        status = read_status(run)
        state, cause = current_state(run, status), status.cause or ""
        is_old = self._is_old(job, status)
        if state is RunState.FINISHED and not (self.policy.fresh and is_old) and is_done(job.plan):
            return Outcome(RunState.SKIPPED, "", 0)
        is_tried_again = status.signal or ((self.policy.fresh or self.policy.retries_failed) and is_old)
        if state is RunState.FAILED and not is_tried_again:
            return Outcome(RunState.FAILED, cause, status.exit or 1)
        if state is RunState.PRUNED and not (self.policy.fresh and is_old):
            return Outcome(RunState.PRUNED, cause, 0)
        return None

    def is_fresh(self, job: Job) -> bool:
        """Whether a job starts over, whatever its directory holds: not once this driver has begun it."""
        return self.policy.fresh and job.entry.job not in self._restarts

    def resumes(self, job: Job, outcome: Outcome) -> tuple[bool, Outcome]:
        """Whether a job that was killed from outside resumes; its outcome, with how often that happened."""
        return self._restarts.setdefault(job.entry.job, Restarts(self.policy.retries)).count(job.plan, outcome)

    def is_at_work(self, job: Job) -> bool:
        """Whether another process has a job, or may have."""
        number, run = job.entry.job, RunDir(Path(job.plan.run_dir))
        status = read_status(run)
        if self.claims.holder(str(number)) is not None or current_state(run, status) is RunState.RUNNING:
            self._silent_since.pop(number, None)
            return True
        # By its beat alone, a live driver seems dead for a moment after the file server's clock was set.
        if boottime() < self._silent_since.setdefault(number, boottime()) + doubt_s(run, status):
            return True
        self._silent_since.pop(number, None)
        return False

    def elsewhere(self, job: Job) -> Outcome | None:
        """How a job ended that another process had; None if it gave the job up."""
        run = RunDir(Path(job.plan.run_dir))
        status = read_status(run)
        state = current_state(run, status)
        is_final = status.state.is_final and not self._is_old(job, status)
        if is_final and state is not RunState.KILLED and not status.signal:
            return Outcome(state, status.cause or "", status.exit or 0)
        return None

    def _is_old(self, job: Job, status: Status) -> bool:
        """Whether a job's directory still holds the attempt that this driver saw first."""
        attempt = (status.token, status.attempt, status.state.is_final)
        return self._first_seen.setdefault(job.entry.job, attempt) == attempt
