"""`hpcexp train`: one run, or with `-m` a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hpcexp.cli.shared.composing import opened
from hpcexp.cli.shared.results import summary_text
from hpcexp.errors import ConfigError, JobFailed
from hpcexp.launch.dispatch import launch
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.tracking.sync.destination import destined

SUMMARY = "Check, run and record an experiment; resume it if it was interrupted. With -m: every combination of values."


def train(argv: Sequence[str]) -> int:
    """Exit status: 0 finished or already done, 1 failed, 2 a mistake, 128 + n stopped by signal n."""
    arguments, composer = opened("train", SUMMARY, argv)
    if composer is None:
        return 0
    command = ["hpcexp", "train", *argv]
    if arguments.multirun:
        from hpcexp.sweep.engine.policy import Policy
        from hpcexp.sweep.hydra.multirun import multirun

        policy = Policy(arguments.fresh, arguments.retry_failed, arguments.fail_fast)
        return multirun(composer, list(arguments.overrides), command, policy)
    plan = prepare(composer.compose(list(arguments.overrides)), composer.project, command)
    return run_one(plan, fresh=arguments.fresh)


def run_one(plan: Plan, *, fresh: bool) -> int:
    """Run a plan and tell how it went."""
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{plan.experiment}/{plan.name}", flush=True)
    outcome = launch(plan, fresh=fresh)
    run = RunDir(Path(plan.run_dir))
    if outcome.state is RunState.SKIPPED:
        print(f"Not run again: {outcome.cause} (--fresh runs it again)")
    if outcome.state in (RunState.FINISHED, RunState.SKIPPED):
        print(summary_text(destined(run), run))
        return 0
    if outcome.state is RunState.PLANNED:
        print(f"Planned, not started (launch=dry): {run.plan}")
        return 0
    if outcome.exit == 2:
        raise ConfigError(outcome.cause)
    if outcome.exit == 1:
        raise JobFailed(f"failed: {outcome.cause}")
    print(f"{outcome.cause}; its files are in {run.path}", file=sys.stderr)
    return outcome.exit
