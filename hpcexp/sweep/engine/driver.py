"""The driver of a sweep: one process that runs jobs side by side on the free devices."""

from __future__ import annotations

import bisect
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from hpcexp.errors import HpcexpError, InUseError
from hpcexp.hardware.leases import DevicesBusyError
from hpcexp.hardware.machine import Machine
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import Display
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import Supervision, wait
from hpcexp.launch.base.pruner import Pruner
from hpcexp.launch.base.restarts import Restarts
from hpcexp.launch.dispatch import started, starter
from hpcexp.launch.supervisor.ownership import TakenOverError
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.clock import boottime
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.status.state import current_state, doubt_s, is_done
from hpcexp.sweep.engine.scheduler import Demand, Running, demand_of, next_to_start, room_of
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.jobs import Job, JobSource

FAILED_FAST = "a job failed (fail_fast)"
LOOK_EVERY_S = 1.0
"""How often the driver reads files: a request to cancel, jobs of other drivers, devices that became free."""


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


@dataclass(frozen=True)
class Policy:
    """How a sweep is driven."""

    fresh: bool = False
    """Whether finished jobs are run again."""
    retries_failed: bool = False
    """Whether jobs that failed before are run again."""
    is_fail_fast: bool = False
    max_jobs: int | None = None
    """Jobs at once."""
    retries: int = 0
    """`launch.retries`."""


@dataclass
class _Running:
    job: Job
    turns: Supervision[Outcome]
    fd: int | None
    demand: Demand
    since: float
    has_overtaken: bool


@dataclass(frozen=True)
class _Taken:
    """A job found too few devices, although no job of this driver uses them."""

    width: int
    why: str
    until: float
    """When to try again, by the monotonic clock. Until then narrower jobs may start first."""


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
    _waiting: list[Job] = field(default_factory=list)
    _running: list[_Running] = field(default_factory=list)
    _elsewhere: list[Job] = field(default_factory=list)
    _first_seen: dict[int, object] = field(default_factory=dict)
    """By job: the attempt in its directory when this driver first looked."""
    _restarts: dict[int, Restarts] = field(default_factory=dict)
    """By job: how often it was killed since this driver started."""
    _silent_since: dict[int, float] = field(default_factory=dict)
    """By job: since when its driver elsewhere has seemed dead, by `boottime`."""
    _next_look: float = 0.0
    _taken: dict[str, _Taken] = field(default_factory=dict)
    """By kind of device."""
    _core_s: float = 0.0
    _gpu_s: float = 0.0

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
        return bool(self._waiting or self._elsewhere or not source.is_over())

    def _start(self, source: JobSource) -> None:
        """Start what fits."""
        while not self.stop and not self.why_stopped:
            if self.policy.max_jobs is not None and len(self._running) >= self.policy.max_jobs:
                return
            self._fetch(source)
            position = self._position()
            if position is None or self.why_stopped:
                return
            self.why_stopped = self.is_spent(self._core_s, self._gpu_s)
            if self.why_stopped:  # running jobs may finish
                return
            self._begin(self._waiting.pop(position), source, has_overtaken=position > 0)

    def _fetch(self, source: JobSource) -> None:
        """Queue jobs: all that are known, or of a search the next one, once it could start."""
        while source.is_known or (not self._waiting and self._has_free()):
            job = source.next()
            if job is None:
                return
            if (before := self._before(job)) is None:
                self._waiting.append(job)
            else:
                self._over(job, before, source, is_old=not job.problem)

    def _has_free(self) -> bool:
        """Whether there are devices of the newest job's kind that no job of this driver uses."""
        if not self._running:
            return True
        newest = self._running[-1]
        return self._free(newest.demand.kind, room_of(newest.job.plan, self.machine)) > 0

    def _free(self, kind: str, room: int) -> int:
        return room - sum(one.demand.width for one in self._running if one.demand.kind == kind)

    def _position(self) -> int | None:
        """Index in the queue of the job to start now; None if none fits."""
        demands = [demand_of(job.plan) for job in self._waiting]
        for kind in dict.fromkeys(demand.kind for demand in demands):
            most = self._most(kind)
            row = [i for i, demand in enumerate(demands) if demand.kind == kind and demand.width <= most]
            if not row:
                continue
            room = room_of(self._waiting[row[0]].plan, self.machine)
            running = [Running(one.demand, one.has_overtaken) for one in self._running if one.demand.kind == kind]
            found = next_to_start([demands[i] for i in row], running, room)
            if found is not None:
                return row[found]
        return None

    def _most(self, kind: str) -> float:
        """The widest job that may fit."""
        taken = self._taken.get(kind)
        return taken.width - 1 if taken and time.monotonic() < taken.until else math.inf

    def _begin(self, job: Job, source: JobSource, *, has_overtaken: bool) -> None:
        name = str(job.entry.job)
        if self.claims.take(name) is not None:
            self._elsewhere.append(job)
        elif (before := self._before(job)) is not None:  # another driver has run it since it was queued
            self.claims.release(name)
            self._over(job, before, source, is_old=True)
        else:
            self._run(job, source, has_overtaken=has_overtaken)

    def _run(self, job: Job, source: JobSource, *, has_overtaken: bool) -> None:
        if not has_overtaken:
            for other in self._running:  # the job that they overtook no longer waits
                other.has_overtaken = False
        is_fresh = self.policy.fresh and job.entry.job not in self._restarts
        turns = started(job.plan, self._context(job, source.pruner(job)), fresh=is_fresh)
        one = _Running(job, turns, None, demand_of(job.plan), time.monotonic(), has_overtaken)
        try:
            one.fd = next(turns)
        except StopIteration as e:
            self._finish(one, e.value, source)
        except DevicesBusyError as e:
            self._put_back(job, str(e))
        except InUseError:
            self.claims.release(str(job.entry.job))
            self._elsewhere.append(job)
        except HpcexpError as e:
            self._finish(one, Outcome(RunState.FAILED, str(e), 2), source)
        else:
            self._taken.pop(one.demand.kind, None)
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

    def _put_back(self, job: Job, why: str) -> None:
        """Return a job to its position in the queue, as others use its devices."""
        self.claims.release(str(job.entry.job))
        demand = demand_of(job.plan)
        self._taken[demand.kind] = _Taken(demand.width, why, time.monotonic() + LOOK_EVERY_S)
        self._wait(job)

    def _wait(self, job: Job) -> None:
        """Queue a job by its number."""
        bisect.insort(self._waiting, job, key=lambda other: other.entry.job)

    def _before(self, job: Job) -> Outcome | None:
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

    def _is_old(self, job: Job, status: Status) -> bool:
        """Whether a job's directory still holds the attempt that this driver saw first."""
        attempt = (status.token, status.attempt, status.state.is_final)
        return self._first_seen.setdefault(job.entry.job, attempt) == attempt

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
            resumes, outcome = self._restarts_of(one.job).count(one.job.plan, outcome)
            if resumes:
                self.view.say(one.job, outcome.cause)
                self._wait(one.job)
                return
        self._over(one.job, outcome, source)

    def _restarts_of(self, job: Job) -> Restarts:
        return self._restarts.setdefault(job.entry.job, Restarts(self.policy.retries))

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
        for job in list(self._elsewhere):
            self._look_elsewhere(job, source)
        why = next((taken.why for taken in self._taken.values()), "")
        self.view.refresh(len(self._waiting), why)

    def _look_elsewhere(self, job: Job, source: JobSource) -> None:
        """Count a job that another process has finished; queue one that it has given up."""
        number, run = job.entry.job, RunDir(Path(job.plan.run_dir))
        status = read_status(run)
        state = current_state(run, status)
        if self.claims.holder(str(number)) is not None or state is RunState.RUNNING:
            self._silent_since.pop(number, None)
            return
        # By its beat alone, a live driver seems dead for a moment after the file server's clock was set.
        if boottime() < self._silent_since.setdefault(number, boottime()) + doubt_s(run, status):
            return
        self._silent_since.pop(number, None)
        is_final = status.state.is_final and not self._is_old(job, status)
        self._elsewhere.remove(job)
        if is_final and state is not RunState.KILLED and not status.signal:
            self._over(job, Outcome(state, status.cause or "", status.exit or 0), source)
        else:
            self._wait(job)

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
