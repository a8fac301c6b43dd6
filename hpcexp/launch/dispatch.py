"""One planned job, launched where its plan says, unless it is done already."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import display
from hpcexp.launch.base.launcher import launcher_of
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import Supervision, alone, signals_caught
from hpcexp.launch.base.rank_process import Process, Start, start_fresh
from hpcexp.launch.supervisor.uploader import RunUploader
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.status.state import is_done
from hpcexp.text.terminal import say


def launch(plan: Plan, *, fresh: bool) -> Outcome:
    """Run the plan as the one job of this process, or resume its interrupted run."""
    gc.enable()
    context = LaunchContext(
        start=starter(plan, many=False),
        catching=signals_caught,
        display=lambda plan: display(plan.settings.launch.progress),
        say=lambda _plan, text: say(text),
        uploader=RunUploader(),
    )
    return alone(started(plan, context, fresh=fresh))


def started(plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
    """Run the plan or resume its interrupted run, yielding to other jobs of the process.

    `skipped` where the same identity has finished before. With `fresh` neither counts: it starts over.
    """
    run = RunDir(Path(plan.run_dir))
    if not fresh and is_done(plan):
        return Outcome(RunState.SKIPPED, f"{plan.signature[:8]} finished in {run.path}", 0)
    return (yield from launcher_of(plan.settings).run(plan, context, fresh=fresh))


def starter(plan: Plan, *, many: bool) -> Callable[[Start], Process]:
    """How ranks are started: a server of warm workers costs more than it saves where there is one job alone."""
    isolation = plan.settings.launch.isolation
    if isolation == "process" or (isolation == "auto" and not many):
        return start_fresh
    from hpcexp.launch.supervisor.forkserver import start_warm

    return start_warm
