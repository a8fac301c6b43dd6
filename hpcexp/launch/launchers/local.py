"""`launch=local`: on this machine, now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcexp.hardware.machine import Machine, this_machine
from hpcexp.schema.settings import Settings

if TYPE_CHECKING:
    from hpcexp.launch.base.context import LaunchContext
    from hpcexp.launch.base.outcome import Outcome
    from hpcexp.launch.base.polling import Supervision
    from hpcexp.plan import Plan
    from hpcexp.rundir import RunDir


class OneMachine:
    """What launchers have in common whose jobs are planned on, and supervised from, this machine."""

    is_here = True

    def problems(self, settings: Settings) -> list[str]:
        """Several nodes, of which this launcher has none."""
        num_nodes, launch = settings.hardware.num_nodes, settings.launch
        if num_nodes == 1:
            return []
        setting = "launch.nodes" if num_nodes == launch.nodes else "hardware.num_nodes"
        return [
            f"{setting}={num_nodes}: {launch.target.rpartition('.')[2]} starts ranks on this machine only.\n"
            f"Fix: launch=torchrun launch.nodes={num_nodes} launch.rdzv=HOST:PORT on each of the machines."
        ]

    def machine(self, settings: Settings) -> Machine:
        """What this machine has."""
        return this_machine()

    def capacity(self, settings: Settings) -> int | None:
        """As many as find devices."""
        return None

    def is_alive(self, run: RunDir) -> bool | None:
        """By the process that supervises it, or from elsewhere by its beat: nothing else knows of it."""
        from hpcexp.runs.owner import is_alive
        from hpcexp.runs.records.status import read_status

        return is_alive(read_status(run), run.beat)

    def cancel(self, run: RunDir) -> None:
        """By a file that its supervisor looks for."""
        from hpcexp.launch.supervisor.ownership import ask_to_end

        ask_to_end(run)


class Local(OneMachine):
    """Ranks are processes of this machine, supervised by this command."""

    def run(self, plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
        """Run the plan on devices that are leased until it ends."""
        from hpcexp.launch.supervisor.lifecycle import run_here

        return (yield from run_here(plan, context, fresh=fresh))
