"""One planned job, launched where its plan says, unless it is done already."""

from __future__ import annotations

from pathlib import Path

from hpcexp.errors import ConfigError
from hpcexp.launch.judge import Judge
from hpcexp.launch.local import claimed, freeze, run_job, run_on_nodes
from hpcexp.launch.resume import continuation
from hpcexp.launch.watch import Outcome
from hpcexp.plan import Plan
from hpcexp.record.alive import is_done
from hpcexp.rundir import RunDir


def launch(plan: Plan, *, fresh: bool, many: bool = False, judge: Judge | None = None) -> Outcome:
    """Run the plan, or go on with its interrupted run.

    `skipped` where the same identity has finished before. With `fresh` neither counts: it starts over.
    `many`: it is one of many jobs of a command. `judge`: asked after each validation whether it is to end; ConfigError
    where it runs on several machines, as nobody can be asked there.
    """
    run = RunDir(Path(plan.run_dir))
    if not fresh and is_done(plan):
        return Outcome("skipped", f"{plan.signature[:8]} finished in {run.path}", 0)
    if plan.config["launch"]["name"] == "dry":
        with claimed(plan):
            if fresh or continuation(plan, verify=False) is None:
                freeze(plan)
        return Outcome("planned", "", 0)
    if plan.config["launch"]["name"] == "nodes":
        if judge is not None:
            raise ConfigError("launch=nodes: trials on several machines cannot be pruned.\nFix: search.pruner=none")
        return run_on_nodes(plan, fresh=fresh)
    return run_job(plan, fresh=fresh, many=many, judge=judge)
