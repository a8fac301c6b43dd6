"""What is done for each job of a sweep, by hpcexp's launcher."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from hpcexp.compose.composer import Composed, composed
from hpcexp.errors import HpcexpError, JobFailed
from hpcexp.launch.job import launch
from hpcexp.launch.watch import Outcome
from hpcexp.once import Once
from hpcexp.plan import Plan
from hpcexp.prepare import prepare
from hpcexp.rundir import RunDir, read_json


class Stopped(BaseException):
    """The user stopped a job, and with it the sweep."""

    def __init__(self, exit_status: int) -> None:
        self.exit_status = exit_status
        super().__init__(exit_status)


@dataclass
class Task:
    """Hydra's task function, and what became of its jobs."""

    project: Path
    command: list[str]
    fresh: bool
    many: bool = False
    """Whether several jobs run from this process."""
    done: list[tuple[Plan, Outcome]] = field(default_factory=list)
    """Jobs that ended, where they ran in this process."""
    _told: set[str] = field(default_factory=set)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Plan and run one job; the value of `trainer.monitor` at its best, for sweepers that optimise it."""
        return self.run(self.plan(composed(cfg)))

    def plan(self, job: Composed, once: Once | None = None) -> Plan:
        """The job's plan."""
        return prepare(job, self.project, self.command, once=once)

    def run(self, plan: Plan, label: str = "") -> float | None:
        """Run a plan; JobFailed where it did not finish."""
        print(f"{label}{plan.experiment}/{plan.name}", flush=True)
        self.warn_of([plan])
        try:
            outcome = launch(plan, fresh=self.fresh, many=self.many)
        except HpcexpError as e:
            outcome = Outcome("failed", str(e), 2)
        self.done.append((plan, outcome))
        if outcome.state == "killed":
            raise Stopped(outcome.exit)
        if outcome.state == "failed":
            print(f"failed: {outcome.cause}", flush=True)
            raise JobFailed(outcome.cause)
        return best_value(plan)

    def warn_of(self, plans: Iterable[Plan]) -> None:
        """Say a warning once for all jobs."""
        for warning in (warning for plan in plans for warning in plan.warnings):
            if warning not in self._told:
                self._told.add(warning)
                print(f"warning: {warning}", file=sys.stderr)


class Planning(Task):
    """Collects the plans of a sweep and runs none of them."""

    def run(self, plan: Plan, label: str = "") -> None:
        """Keep the plan."""
        self.done.append((plan, Outcome("planned", "", 0)))


def best_value(plan: Plan) -> float | None:
    """The best `trainer.monitor` that the plan's run has recorded."""
    best = read_json(RunDir(Path(plan.run_dir)).summary).get("best") or {}
    value: float | None = best.get("value")
    return value
