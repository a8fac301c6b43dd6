"""Whether an interrupted run can resume, and from which of its checkpoints."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.atomic import is_half_written, second_name
from hpcexp.plan import Plan, load_plan, load_signature
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import is_intact, read_note
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.status.state import current_state, damage


@dataclass(frozen=True)
class Continuation:
    """An interrupted run and the checkpoint it resumes from."""

    checkpoint: Path
    step: int
    best_step: int | None
    """Step of the best weights at that time."""
    why: str
    """What became of the last attempt."""
    attempt: int
    """Number of the next one, from 1."""
    damaged: tuple[Path, ...]
    """Newer checkpoints that cannot be used."""

    def text(self, plan: Plan) -> str:
        """`step 12 of 38 (killed: stopped by SIGTERM)`."""
        of = f" of {plan.steps.total}" if plan.steps else ""
        return f"step {self.step}{of} ({self.why})"


def continuation(plan: Plan, *, verify: bool) -> Continuation | None:
    """Where the plan's unfinished run resumes; None if there is no such run, or it has no checkpoint yet.

    With `verify` the checksums are worked out; without, a checkpoint counts that ends as one should. RunError where all
    checkpoints are damaged.
    """
    run = RunDir(Path(plan.run_dir))
    status = read_status(run)
    state = current_state(run, status)
    if not run.plan.exists() or state is RunState.FINISHED or load_signature(run.plan) != plan.signature:
        return None
    present = [path for path in (run.last, run.previous) if path.exists()]
    for number, path in enumerate(present):
        note = read_note(path)
        if note is None or (verify and not is_intact(path)) or not _has_best(run, note.best, verify):
            continue
        cause = (status.cause or "").splitlines()
        state = RunState.KILLED if state is RunState.RUNNING else state
        why = f"{state}: {cause[0]}" if cause else state
        attempt = (status.attempt or 1) + 1
        return Continuation(path, note.step or 0, note.best, why, attempt, tuple(present[:number]))
    if not present:
        return None
    names = " and ".join(str(path) for path in present)
    raise RunError(
        f"The run was interrupted and cannot resume: {names} {'is' if len(present) == 1 else 'are'} damaged, "
        "or the best weights of that time are.\n"
        "Fix: hpcexp train --fresh … starts over; the damaged run is kept beside."
    )


def is_blank(run: RunDir) -> bool:
    """Whether a try reached no step and no checkpoint: in its directory are only our notes, whole or not, and logs."""
    kept = [path for path in run.path.glob("*") if path not in (run.logs, run.lineage, run.beat.parent)]
    files = [path for top in kept for path in (top, *top.rglob("*")) if path.is_file() and not is_half_written(path)]
    return all(path.name in _NOTES or (path == run.journal and not path.stat().st_size) for path in files)


_NOTES = (
    *("plan.yaml", "status.json", "system.jsonl", "mlflow.json", "failed.json"),
    *(".tracking", ".secrets", ".mark", ".sync.lock"),
)
"""Files that another attempt rewrites or continues."""


def begins_again(plan: Plan) -> bool:
    """Whether the plan's unfinished run wrote no checkpoint: it does the same from its first step on."""
    run = RunDir(Path(plan.run_dir))
    if not run.plan.exists() or current_state(run) in (RunState.PLANNED, RunState.FINISHED):
        return False
    return load_signature(run.plan) == plan.signature and not (run.last.exists() or run.previous.exists())


def with_recorded_settings(plan: Plan) -> Plan:
    """The plan with as many threads as its interrupted run had: other numbers of them add up in another order."""
    run = RunDir(Path(plan.run_dir))
    if plan.topology.accelerator != "cpu" or not run.journal.exists() or damage(plan):
        return plan
    before = load_plan(run.plan)
    if before.signature != plan.signature or current_state(run) == RunState.FINISHED:
        return plan
    threads = before.topology.threads_per_rank
    return replace(plan, topology=replace(plan.topology, threads_per_rank=threads))


def clear(run: RunDir) -> None:
    """Take away what an attempt that was ended left half done."""
    run.summary.unlink(missing_ok=True)  # of one that was ended right after it
    for half_written in run.checkpoints.glob(".*.ckpt.*"):
        half_written.unlink(missing_ok=True)


def leftovers(run: RunDir) -> list[Path]:
    """Files that only resuming needs."""
    note = read_note(run.last)
    kept = {name.partition("/")[0] for name in (note.beside if note else ())}
    shards = [directory for directory in run.checkpoints.glob("shards-*") if directory.name not in kept]
    return [run.previous, *run.checkpoints.glob("best-*.ckpt"), *shards]


def tidy(run: RunDir) -> None:
    """Remove what only resuming needs, once the run has finished and its state says so."""
    for path in leftovers(run):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def go_back(run: RunDir, found: Continuation) -> None:
    """Have `last.ckpt` and `best.ckpt` as they were at the checkpoint. Says so where a newer one is damaged."""
    clear(run)
    for path in found.damaged:
        aside = path.with_name(f"damaged-{path.name}")
        os.replace(path, aside)
        print(
            f"WARNING: {path} is damaged (kept as {aside.name}). Resuming from the checkpoint before it.",
            file=sys.stderr,
            flush=True,
        )
    if found.checkpoint != run.last:
        os.replace(found.checkpoint, run.last)
    if found.best_step is None:
        run.best.unlink(missing_ok=True)
    else:
        second_name(run.best_of(found.best_step), run.best)


def _has_best(run: RunDir, step: int | None, verify: bool) -> bool:
    if step is None:
        return True
    path = run.best_of(step)
    return is_intact(path) if verify else path.exists()
