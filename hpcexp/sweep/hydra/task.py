"""Hydra's task function, and what became of its jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from hpcexp.launch.base.outcome import Outcome
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary


class MultirunStopped(BaseException):
    """The user stopped a job, and with it the sweep."""

    def __init__(self, exit_status: int) -> None:
        self.exit_status = exit_status
        super().__init__(exit_status)


@dataclass
class HydraTask:
    """What all jobs of a command have in common."""

    project: Path
    command: list[str]
    fresh: bool
    done: list[tuple[Plan, Outcome]] = field(default_factory=list)
    """Jobs that ended, where a launcher of Hydra's ran them."""
    _warned: set[str] = field(default_factory=set)

    def __call__(self, cfg: DictConfig) -> None:
        """Hydra asks for a function; launchers get one of their own."""
        raise AssertionError("launchers run jobs by plans")

    def warn_of(self, plans: Iterable[Plan]) -> None:
        """Say a warning once for all jobs."""
        for warning in (warning for plan in plans for warning in plan.warnings):
            if warning not in self._warned:
                self._warned.add(warning)
                print(f"warning: {warning}", file=sys.stderr)


def best_value(plan: Plan) -> float | None:
    """The best `trainer.monitor` that the plan's run has recorded."""
    best = read_summary(RunDir(Path(plan.run_dir))).best
    return best.value if best else None
