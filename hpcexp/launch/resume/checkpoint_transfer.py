"""`run.resume_from`: a new run continues an experiment that was started on other devices."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.atomic import second_name
from hpcexp.files.untrusted import create, open_regular
from hpcexp.lineage.signature import signature
from hpcexp.plan import Plan, load_plan
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.checkpoint_checksum import is_intact, read_note
from hpcexp.runs.records.status import RunState
from hpcexp.status.state import current_state


@dataclass(frozen=True)
class TransferOrigin:
    """The checkpoint that a run without one of its own starts from."""

    run: RunDir
    checkpoint: Path
    step: int
    best_step: int | None
    beside: tuple[str, ...]
    """Files with the checkpoint's shards, below the checkpoint's directory."""

    def text(self, plan: Plan) -> str:
        """`step 12 of 38 of runs/digits_mlp/…`."""
        of = f" of {plan.steps.total}" if plan.steps else ""
        return f"step {self.step}{of} of {self.run.path}"


def origin(plan: Plan) -> TransferOrigin | None:
    """The newest checkpoint of `run.resume_from`; None if that is not set.

    RunError if there is none, or if its experiment differs in more than its devices.
    """
    given = plan.settings.run.resume_from
    if not given:
        return None
    run = _named(plan, given)
    if (state := current_state(run)) in (RunState.RUNNING, RunState.FINISHED):
        raise RunError(f"run.resume_from={given}: that run {_STATES[state]}")
    _check_same(plan, load_plan(run.plan), given)
    for path in (run.last, run.previous):
        note = read_note(path)
        if note is not None and is_intact(path) and (note.best is None or is_intact(run.best_of(note.best))):
            return TransferOrigin(run, path, note.step or 0, note.best, tuple(note.beside))
    raise RunError(
        f"run.resume_from={given}: that run has no intact checkpoint.\nFix: leave it out to start from the beginning."
    )


def adopt(found: TransferOrigin, run: RunDir) -> None:
    """Make a new run's directory look as if it had reached the checkpoint itself: weights, state, journal.

    Checkpoints are never written to again, and so need no copy; a file system without hard links gets one.
    """
    for name in found.beside:
        (run.checkpoints / name).parent.mkdir(parents=True, exist_ok=True)
        second_name(found.run.checkpoints / name, run.checkpoints / name)
    run.checkpoints.mkdir(exist_ok=True)
    if found.best_step is not None:
        second_name(found.run.best_of(found.best_step), run.best_of(found.best_step))
        second_name(run.best_of(found.best_step), run.best)
    with open_regular(found.run.journal) as theirs, os.fdopen(create(run.journal), "wb") as ours:
        shutil.copyfileobj(theirs, ours)
    second_name(found.checkpoint, run.last)


_STATES = {
    RunState.RUNNING: "is still being trained.\nFix: wait for it, or end it.",
    RunState.FINISHED: "has finished.\nFix: leave it out; hpcexp test, predict and export work with any devices.",
}


def _named(plan: Plan, given: str) -> RunDir:
    """The run in the directory `given`, or of that name or signature beside the plan's run."""
    place = RunDir(Path(plan.lineage["project"], given))
    if place.plan.exists():
        return place
    found = [r for r in find_runs(Path(plan.run_dir).parent.parent) if r.path.name.endswith(given)]
    if len(found) == 1:
        return found[0]
    what = "several runs are" if found else f"there is no run in {place.path}, and none is"
    raise RunError(
        f"run.resume_from={given}: {what} called that.\n"
        "Fix: the directory of a run, or the eight characters that its name ends in."
    )


def _check_same(plan: Plan, theirs: Plan, given: str) -> None:
    """RunError unless the new plan, on the devices of the old run, has the old run's signature."""
    code, data = plan.lineage["code.digest"], plan.data.fingerprint if plan.data else ""
    begun = plan.initial_weights.sha256 if plan.initial_weights else ""
    asked = (plan.config, theirs.topology, theirs.batch, theirs.steps)
    if theirs.signature == signature(*asked, code=code, data=data, weights=begun):
        return
    raise RunError(
        f"run.resume_from={given} is another experiment: more than its devices is different.\n"
        f"Fix: its own overrides, but for hardware.*: {' '.join(theirs.overrides) or 'none'}. "
        f"What is different: hpcexp why {given} …"
    )
