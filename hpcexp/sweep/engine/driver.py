"""The driver of a sweep: one process that runs jobs side by side on the free devices."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from hpcexp.errors import HpcexpError, InUseError
from hpcexp.hardware.leases import DevicesBusyError
from hpcexp.hardware.machine import Machine
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import Display
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import Supervision, wait
from hpcexp.launch.base.pruner import Pruner
from hpcexp.launch.dispatch import started, starter
from hpcexp.launch.supervisor.ownership import TakenOverError
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.engine.attempts import Attempts
from hpcexp.sweep.engine.policy import Policy
from hpcexp.sweep.engine.queue import JobQueue
from hpcexp.sweep.engine.scheduler import Demand, Running, demand_of
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.jobs import Job, JobSource

FAILED_FAST = "a job failed (fail_fast)"
LOOK_EVERY_S = 1.0
"""How often the driver reads files: a request to cancel, jobs of other drivers."""


class SweepView(Protocol):
    """Shows a sweep at work."""

    def began(self, job: Job) -> None:
        """A job was started."""

    def display(self, job: Job) -> Display:
        """Shows a job's progress."""

    def say(self, job: Job | None, text: str) -> None:
        """Print a message about a job or about the sweep."""

    def ended(self, job: Job, outcome: Outcome, *, is_old: bool) -> None:
        """A job has ended. `is_old`: before this driver started, so that it need not run."""

    def refresh(self, waiting: int, why: str) -> None:
        """Time has passed. `why`: what the next job waits for."""


@dataclass
class _Running:
    job: Job
    turns: Supervision[Outcome]
    fd: int | None
    demand: Demand
    since: float
    has_overtaken: bool

    @property
    def load(self) -> Running:
        return Running(self.demand, self.has_overtaken)


@dataclass
class Driver:
    """Runs the jobs of a source. Its state is in files: a driver that is started again resumes the sweep."""

    claims: Claims
    machine: Machine
    context: LaunchContext
    view: SweepView
    policy: Policy
    is_spent: Callable[[float, float], str]
    """Why the budget is used up, given this driver's core and GPU seconds; empty while it is not."""
    stop: list[int] = field(default_factory=list)
    """Signals that ended the sweep; the same list as in `context`."""
    why_stopped: str = ""
    _running: list[_Running] = field(default_factory=list)
    _elsewhere: list[Job] = field(default_factory=list)
    _next_look: float = 0.0
    _core_s: float = 0.0
    _gpu_s: float = 0.0

    def __post_init__(self) -> None:
        self._queue = JobQueue(self.machine)
        self._attempts = Attempts(self.claims, self.policy)

    def run(self, source: JobSource) -> None:
        """Run the jobs of `source` until it has no more or the sweep is stopped."""
        try:
            while self._goes_on(source):
                self._start(source)
                wait([one.fd for one in self._running] or [])
                self._advance(source)
                self._look(source)
        finally:
            for one in self._running:
                one.turns.close()
                self.claims.release(str(one.job.entry.job))

    def _goes_on(self, source: JobSource) -> bool:
        if self._running:
            return True
        if self.stop or self.why_stopped:
            return False
        return bool(self._queue or self._elsewhere or not source.is_over())

    def _start(self, source: JobSource) -> None:
        """Start what fits."""
        while not self.stop and not self.why_stopped:
            if self.policy.max_jobs is not None and len(self._running) >= self.policy.max_jobs:
                return
            self._fetch(source)
            position = self._queue.position(self._loads())
            if position is None or self.why_stopped:
                return
            self.why_stopped = self.is_spent(self._core_s, self._gpu_s)
            if self.why_stopped:  # running jobs may finish
                return
            self._begin(self._queue.pop(position), source, has_overtaken=position > 0)

    def _fetch(self, source: JobSource) -> None:
        """Queue jobs: all that are known, or of a search the next one, once it could start."""
        while source.is_known or (not self._queue and self._has_free()):
            job = source.next()
            if job is None:
                return
            if (before := self._attempts.before(job)) is None:
                self._queue.append(job)
            else:
                self._over(job, before, source, is_old=not job.problem)

    def _has_free(self) -> bool:
        """Whether one more job like the newest could start."""
        return not self._running or self._queue.has_free(self._running[-1].job, self._loads())

    def _loads(self) -> list[Running]:
        return [one.load for one in self._running]

    def _begin(self, job: Job, source: JobSource, *, has_overtaken: bool) -> None:
        name = str(job.entry.job)
        if self.claims.take(name) is not None:
            self._elsewhere.append(job)
        elif (before := self._attempts.before(job)) is not None:  # another driver has run it since it was queued
            self.claims.release(name)
            self._over(job, before, source, is_old=True)
        else:
            self._run(job, source, has_overtaken=has_overtaken)

    def _run(self, job: Job, source: JobSource, *, has_overtaken: bool) -> None:
        if not has_overtaken:
            for other in self._running:  # the job that they overtook no longer waits
                other.has_overtaken = False
        fresh = self._attempts.is_fresh(job)
        turns = started(job.plan, self._context(job, source.pruner(job)), fresh=fresh)
        one = _Running(job, turns, None, demand_of(job.plan), time.monotonic(), has_overtaken)
        try:
            one.fd = next(turns)
        except StopIteration as e:
            self._finish(one, e.value, source)
        except DevicesBusyError as e:
            self.claims.release(str(job.entry.job))
            self._queue.put_back(job, str(e))
        except InUseError:
            self.claims.release(str(job.entry.job))
            self._elsewhere.append(job)
        except HpcexpError as e:
            self._finish(one, Outcome(RunState.FAILED, str(e), 2), source)
        else:
            self._queue.started(job)
            self._running.append(one)
            self.view.began(job)

    def _context(self, job: Job, pruner: Pruner | None) -> LaunchContext:
        return replace(
            self.context,
            pruner=pruner,
            start=starter(job.plan, many=True),
            display=lambda _plan: self.view.display(job),
            say=lambda _plan, text: self.view.say(job, text),
        )

    def _advance(self, source: JobSource) -> None:
        """Advance the supervision of every running job."""
        for one in list(self._running):
            try:
                one.fd = next(one.turns)
            except StopIteration as e:
                self._finish(one, e.value, source)
            except TakenOverError:
                self._leave(one)
            except HpcexpError as e:
                self._finish(one, Outcome(RunState.FAILED, str(e), 2), source)

    def _finish(self, one: _Running, outcome: Outcome, source: JobSource) -> None:
        if one in self._running:
            self._running.remove(one)
            spent = (time.monotonic() - one.since) * one.demand.width
            self._gpu_s += spent if one.demand.kind == "cuda" else 0.0
            self._core_s += spent if one.demand.kind == "cpu" else 0.0
        self.claims.release(str(one.job.entry.job))
        if outcome.signal and not self.stop and not self.why_stopped:
            resumes, outcome = self._attempts.resumes(one.job, outcome)
            if resumes:
                self.view.say(one.job, outcome.cause)
                self._queue.insert(one.job)
                return
        self._over(one.job, outcome, source)

    def _over(self, job: Job, outcome: Outcome, source: JobSource, *, is_old: bool = False) -> None:
        source.ended(job, outcome)
        self.view.ended(job, outcome, is_old=is_old)
        if outcome.state is RunState.FAILED and self.policy.is_fail_fast and not self.why_stopped:
            self._halt(FAILED_FAST)

    def _halt(self, why: str) -> None:
        """Start nothing more; running jobs write a checkpoint and end."""
        self.why_stopped = why
        self.view.say(None, f"stopping: {why}")
        if not self.stop:
            self.stop.append(signal.SIGTERM)

    def _look(self, source: JobSource) -> None:
        """Every second: beat, claims that were lost, cancellation, jobs of other drivers."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_EVERY_S
        for name in self.claims.beat():
            self._lost(name)
        if not self.why_stopped and not self.stop and SweepDir(self.claims.directory).cancel.exists():
            self._halt("cancelled")
        for job in [job for job in self._elsewhere if not self._attempts.is_at_work(job)]:
            self._elsewhere.remove(job)
            if (outcome := self._attempts.elsewhere(job)) is not None:
                self._over(job, outcome, source)
            else:
                self._queue.insert(job)
        self.view.refresh(len(self._queue), self._queue.why)

    def _lost(self, name: str) -> None:
        """Leave a job to the driver that took it over while this one was suspended."""
        for one in [one for one in self._running if str(one.job.entry.job) == name]:
            one.turns.close()
            self._leave(one)

    def _leave(self, one: _Running) -> None:
        self._running.remove(one)
        self.claims.release(str(one.job.entry.job))
        self._elsewhere.append(one.job)
        self.view.say(one.job, "taken over by another driver while this one was suspended")
