"""Hydra's launcher for hpcexp: all jobs are planned before the first starts, and a failure does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hpcexp.compose.composer import Composed, CompositionError
from hpcexp.errors import ConfigError, JobFailed
from hpcexp.once import Once
from hpcexp.plan import Plan
from hpcexp.sweep.task import Task

Compose = Callable[[Sequence[str]], Composed]


class PlanLauncher(Launcher):
    """Runs the jobs of a sweep one after the other on this machine."""

    config: DictConfig
    task: Task

    def __init__(self, compose: Compose) -> None:
        self._compose = compose

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first batch."""
        assert isinstance(task_function, Task)
        self.config, self.task = config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan all, then run all."""
        # A sweeper that asks for one job at a time, as an optimiser does, will ask for more.
        self.task.many = len(job_overrides) > 1 or initial_job_idx > 0
        plans = planned_all(self.task, self._compose, job_overrides)
        total = initial_job_idx + len(plans)
        return [
            self._job(overrides, plan, f"[{initial_job_idx + i + 1}/{total}] ")
            for i, (overrides, plan) in enumerate(zip(job_overrides, plans, strict=True))
        ]

    def _job(self, overrides: Sequence[str], plan: Plan, label: str) -> JobReturn:
        job = JobReturn(overrides=overrides, task_name="hpcexp", status=JobStatus.COMPLETED)
        try:
            job.return_value = self.task.run(plan, label)
        except JobFailed as e:
            # Hydra's own sweeper would raise the first failure at once; others want to know what failed.
            if not self.config.hydra.sweeper._target_.endswith(".BasicSweeper"):
                job.return_value, job.status = e, JobStatus.FAILED
        return job


def planned_all(task: Task, compose: Compose, job_overrides: Sequence[Sequence[str]]) -> list[Plan]:
    """The plans of all jobs; ConfigError with the mistakes of all, CompositionError at the first that does not compose.

    What jobs have in common is looked up once, and anew the next time that jobs are planned.
    """
    plans, problems, once = [], [], Once()
    for overrides in job_overrides:
        composed = compose(overrides)
        try:
            plans.append(task.plan(composed, once))
        except ConfigError as e:
            asked = " ".join(override.lstrip("+") for override in overrides)
            problems += [f"{asked}\n{problem}" for problem in e.problems]
        if composed.problems:  # others would have the same ones
            raise CompositionError(problems, None)
    if problems:
        raise ConfigError(problems)
    return plans
