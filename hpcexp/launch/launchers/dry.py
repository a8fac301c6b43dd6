"""`launch=dry`: freeze the plan into its run directory and start nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcexp.launch.launchers.local import OneMachine
from hpcexp.runs.records.status import RunState
from hpcexp.schema.settings import Settings

if TYPE_CHECKING:
    from hpcexp.launch.base.context import LaunchContext
    from hpcexp.launch.base.outcome import Outcome
    from hpcexp.launch.base.polling import Supervision
    from hpcexp.plan import Plan


class Dry(OneMachine):
    """Leaves a run directory with its plan, as it would be launched."""

    is_here = False

    def problems(self, settings: Settings) -> list[str]:
        """None: where it is launched one day decides."""
        return []

    def run(self, plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
        """Write the plan, unless that would take an interrupted run's place."""
        from hpcexp.launch.base.outcome import Outcome
        from hpcexp.launch.resume.interrupted import begins_again, continuation
        from hpcexp.launch.supervisor.lifecycle import freeze
        from hpcexp.launch.supervisor.ownership import claimed

        yield from ()
        with claimed(plan):
            if fresh or not (begins_again(plan) or continuation(plan, verify=False)):
                context.capture.write(plan, freeze(plan))
        return Outcome(RunState.PLANNED, "", 0)
