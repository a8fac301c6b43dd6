"""`launch=torchrun`: on several machines without a scheduler, the same command on each of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hpcexp.errors import ConfigError
from hpcexp.launch.launchers.local import OneMachine
from hpcexp.schema.settings import Settings

if TYPE_CHECKING:
    from hpcexp.launch.base.context import LaunchContext
    from hpcexp.launch.base.outcome import Outcome
    from hpcexp.launch.base.polling import Supervision
    from hpcexp.plan import Plan

_HOST_AND_PORT = re.compile(r"(?:[^:\s\[\]]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")


class Torchrun(OneMachine):
    """Each machine runs its ranks below torchrun's agent; the agents meet at `rdzv`, whose host leads."""

    is_here = False

    def __init__(self, rdzv: str) -> None:
        """`rdzv`: `HOST:PORT` where the machines find each other: one of them, and a port that is free there."""
        self.rdzv = rdzv

    def problems(self, settings: Settings) -> list[str]:
        """Too few nodes, other nodes than the hardware's, and a rendezvous that is no address."""
        num_nodes, launch = settings.hardware.num_nodes, settings.launch
        problems = []
        if launch.nodes < 2:
            problems.append(
                f"launch.nodes={launch.nodes}: launch=torchrun is for several machines.\n"
                "Fix: launch.nodes=2, or launch=local."
            )
        if num_nodes != launch.nodes:
            problems.append(
                f"hardware.num_nodes={num_nodes}, but launch.nodes={launch.nodes}.\nFix: leave hardware.num_nodes out."
            )
        match = _HOST_AND_PORT.fullmatch(str(self.rdzv))
        if match is None or not 0 < int(match[1]) < 2**16:
            problems.append(
                f"launch.rdzv={self.rdzv}: not HOST:PORT.\n"
                "Fix: launch.rdzv=HOST:29400 with the name or address of one of the machines."
            )
        return problems

    def capacity(self, settings: Settings) -> int | None:
        """One: all jobs would meet at the same port."""
        return 1

    def run(self, plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
        """Run this machine's part of the plan."""
        from hpcexp.launch.launchers.nodes_job import run_on_nodes

        if context.pruner is not None:
            raise ConfigError("launch=torchrun: trials on several machines cannot be pruned.\nFix: search.pruner=none")
        return (yield from run_on_nodes(plan, context, fresh=fresh))
