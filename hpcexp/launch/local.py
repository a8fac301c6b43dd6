"""The supervisor: one job on this machine, from its frozen plan to its final state."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcexp.errors import RunError
from hpcexp.launch.display import display
from hpcexp.launch.ears import Ears
from hpcexp.launch.process import Process, Start, start_fresh
from hpcexp.launch.ranks import Ranks
from hpcexp.launch.resume import Continuation, continuation, go_back
from hpcexp.launch.shipping import await_shipper, start_shipper
from hpcexp.launch.watch import Outcome, Watch
from hpcexp.plan import Plan, save_plan
from hpcexp.record.uri import without_password
from hpcexp.rundir import RunDir, held, write_atomic, write_json


def freeze(plan: Plan, found: Continuation | None = None) -> RunDir:
    """Write the plan into its run directory. An earlier try that is not gone on with is kept beside it."""
    run = RunDir(Path(plan.run_dir))
    if found is None and run.plan.exists():
        _set_aside(run.path)
    shown = plan.tracking_uri and without_password(plan.tracking_uri)
    try:
        if found is not None:
            go_back(run, found)
        if shown != plan.tracking_uri:
            write_atomic(run.secret_uri, f"{plan.tracking_uri}\n", mode=0o600)
        save_plan(replace(plan, tracking_uri=shown), run.plan)
    except OSError as e:
        raise RunError(f"{run.path} cannot be written: {e.strerror}.\nFix: run.root=… where there is room.") from e
    return run


def claimed(plan: Plan) -> AbstractContextManager[None]:
    """Keep other commands out of the plan's run directory; RunError names the one that is in it."""
    path = Path(plan.run_dir)
    return held(path.parent / f".{path.name}.lock", f"{path} is being written by")


def run_job(plan: Plan, *, fresh: bool, many: bool = False) -> Outcome:
    """Freeze the plan, run its ranks, and leave a final state behind whatever happens.

    An interrupted run is gone on with, in its directory and its MLflow run, unless `fresh`. `many`: it is one of many.
    """
    gc.enable()
    with claimed(plan):
        found = None if fresh else continuation(plan, verify=True)
        if found is not None:
            print(f"Continuing from {found.text(plan)} (--fresh starts over)", flush=True)
        run = freeze(plan, found)
        status = {
            "state": "running",
            "started": time.time(),
            "attempt": found.attempt if found else 1,
            "pid": os.getpid(),
            "host": plan.lineage["host"],
        }
        write_json(run.status, status)
        shipper = start_shipper(run)
        outcome = Outcome("failed", "the supervisor itself failed", 1)
        try:
            outcome = _supervise(plan, run, many=many)
        finally:
            ended = {"ended": time.time(), "state": outcome.state, "cause": outcome.cause, "exit": outcome.exit}
            _end(run, {**status, **ended})
            await_shipper(shipper, run, plan.config["tracking"]["wait_s"])
    return outcome


def _end(run: RunDir, status: dict[str, Any]) -> None:
    """Leave the final state. On a full disk it stays `running` there, and readers see that nobody runs it."""
    try:
        write_json(run.status, status)
    except OSError as e:
        print(f"{run.status} cannot be written: {e.strerror}. The run {status['state']}.", file=sys.stderr)


def _supervise(plan: Plan, run: RunDir, *, many: bool) -> Outcome:
    launch = plan.config["launch"]
    shown = display(launch["progress"])
    try:
        ranks = Ranks(plan, _starter(launch["isolation"], many=many))
        try:
            ears = Ears(ranks.progress_fd, run.rank_log(0), shown)
            return Watch(ranks, ears, run, launch["grace_s"], launch["hang_s"]).until_end()
        finally:
            ranks.close()
    finally:
        shown.close()


def _starter(isolation: str, *, many: bool) -> Callable[[Start], Process]:
    """How ranks are started: a server of warm workers costs more than it saves where there is one job alone."""
    if isolation == "process" or (isolation == "auto" and not many):
        return start_fresh
    from hpcexp.launch.warm import start_warm

    return start_warm


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}~{number}")).exists():
        number += 1
    path.rename(aside)
