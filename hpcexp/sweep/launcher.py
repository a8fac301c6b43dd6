"""Hydra's launcher for hpcexp: all jobs are planned before the first starts, and a failure does not stop the rest."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hpcexp.compose.composer import composed
from hpcexp.errors import ConfigError, JobFailed
from hpcexp.plan import Plan
from hpcexp.sweep.task import Task


class PlanLauncher(Launcher):
    """Runs the jobs of a sweep one after the other on this machine."""

    config: DictConfig
    context: HydraContext
    task: Task

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first batch."""
        assert isinstance(task_function, Task)
        self.config, self.context, self.task = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan all, then run all."""
        # A sweeper that asks for one job at a time, as an optimiser does, will ask for more.
        self.task.many = len(job_overrides) > 1 or initial_job_idx > 0
        configs = [
            self.context.config_loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides
        ]
        plans = planned_all(self.task, configs, job_overrides)
        total = initial_job_idx + len(plans)
        return [
            self._job(overrides, cfg, plan, f"[{initial_job_idx + i + 1}/{total}] ")
            for i, (overrides, cfg, plan) in enumerate(zip(job_overrides, configs, plans, strict=True))
        ]

    def _job(self, overrides: Sequence[str], cfg: DictConfig, plan: Plan, label: str) -> JobReturn:
        job = JobReturn(overrides=overrides, cfg=cfg, task_name="hpcexp", status=JobStatus.COMPLETED)
        try:
            job.return_value = self.task.run(plan, label)
        except JobFailed as e:
            # Hydra's own sweeper would raise the first failure at once; others want to know what failed.
            if not self.config.hydra.sweeper._target_.endswith(".BasicSweeper"):
                job.return_value, job.status = e, JobStatus.FAILED
        return job


def planned_all(task: Task, configs: Sequence[DictConfig], job_overrides: Sequence[Sequence[str]]) -> list[Plan]:
    """The plans of all jobs; ConfigError with the mistakes of all."""
    plans, problems = [], []
    for overrides, cfg in zip(job_overrides, configs, strict=True):
        try:
            plans.append(task.plan(composed(cfg)))
        except ConfigError as e:
            asked = " ".join(override.lstrip("+") for override in overrides)
            problems += [f"{asked}\n{problem}" for problem in e.problems]
    if problems:
        raise ConfigError(problems)
    return plans
