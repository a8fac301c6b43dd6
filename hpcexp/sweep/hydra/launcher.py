"""hpcexp's launcher for Hydra's sweepers: what they ask for at a time is planned as a whole, and run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hpcexp.errors import JobFailed
from hpcexp.launch.base.outcome import Outcome
from hpcexp.plan import Plan
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.engine.job_entries import PlannedJob
from hpcexp.sweep.engine.session import Session
from hpcexp.sweep.hydra.task import MultirunStopped, best_value

Planner = Callable[[Sequence[Sequence[str]]], list[Plan]]


class PlanLauncher(Launcher):
    """Runs the jobs of a sweeper in a session that begins with its first ones."""

    def __init__(self, planned: Planner, session_of: Callable[[Plan], Session]) -> None:
        self._planned, self._session_of = planned, session_of
        self._stack = ExitStack()
        self.session: Session | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first batch; everything is known by then."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan all, then run all."""
        plans = self._planned(job_overrides)
        if self.session is None:
            self.session = self._session_of(plans[0])
            self._stack.enter_context(self.session.opened())
        overrides = [PlannedJob(tuple(job), plan) for job, plan in zip(job_overrides, plans, strict=True)]
        outcomes = self.session.run_all(overrides)
        if self.session.is_stopped:
            raise MultirunStopped(self.session.exit_status)
        return [_returned(*job) for job in zip(job_overrides, plans, outcomes, strict=True)]

    def close(self) -> None:
        """End the session."""
        self._stack.close()


class CollectingLauncher(Launcher):
    """Plans what a sweeper asks for, and runs none of it."""

    def __init__(self, planned: Planner) -> None:
        self._planned = planned
        self.plans: list[Plan] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Keep the plans."""
        plans = self._planned(job_overrides)
        self.plans += plans
        not_run = Outcome(RunState.PLANNED, "", 0)
        return [_returned(job, plan, not_run) for job, plan in zip(job_overrides, plans, strict=True)]


def _returned(overrides: Sequence[str], plan: Plan, outcome: Outcome) -> JobReturn:
    """As a sweeper expects it: a failure is returned, not raised."""
    job = JobReturn(overrides=overrides, task_name="hpcexp", status=JobStatus.COMPLETED)
    if outcome.state in (RunState.FAILED, RunState.KILLED, RunState.NOT_RUN):
        job.return_value, job.status = JobFailed(outcome.cause), JobStatus.FAILED
    else:
        job.return_value = best_value(plan)
    return job
