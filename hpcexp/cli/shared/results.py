"""What several verbs show: how a run went, and what differs from it."""

from __future__ import annotations

from hpcexp.compare.provenance_diff import Part
from hpcexp.files.untrusted import UnusableFileError
from hpcexp.plan import Plan
from hpcexp.redaction import without_password
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import read_status
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.text.formatting import duration, metric, near, pairs
from hpcexp.tracking.mlflow.links import ui_link

_SHOWN = 20
"""Differences of a part that are shown."""


def summary_text(plan: Plan, run: RunDir) -> str:
    """How a finished run went, and where to look."""
    summary, status = read_summary(run), read_status(run)
    rows: list[tuple[str, object]] = [(k, metric(v)) for k, v in summary.test.items()]
    if best := summary.best:
        none = f"the last weights, of epoch {best.epoch + 1}: no validation gave a number for {best.monitor}"
        value = best.value
        rows.append(("best", none if value is None else f"{best.monitor} {metric(value)} in epoch {best.epoch + 1}"))
        rows += [("checkpoint", near(run.path / best.path))] if best.path else []
    if summary.diverged:
        rows.append(("diverged", "the training loss was not a finite number: see plots/ and metrics.jsonl"))
    if status.ended is not None and status.seconds is not None:
        rows.append(("took", duration(status.seconds)))
    rows.append(("run", near(run.path)))
    rows += _look(plan, run)
    return pairs(rows)


def part_text(part: Part) -> str:
    """What of a part differs, and how much is the same."""
    number = len(part.differing)
    if not number:
        said = f"the same ({part.num_same} {part.unit})" if part.num_same else "nothing to compare"
    else:
        said = f"{number} of {number + part.num_same} {part.unit} differ"
        said += "" if part.counts else ", which changes no result"
    note = f"; {part.note}" if part.note else ""
    rows = [(name, f"{then} → {now}") for name, (then, now) in part.differing.items()]
    more = [("…", f"{number - _SHOWN} more")] if number > _SHOWN else []
    return "\n".join([f"{part.name:<9}  {said}{note}", *([pairs([*rows[:_SHOWN], *more])] if rows else [])])


def _look(plan: Plan, run: RunDir) -> list[tuple[str, object]]:
    if plan.tracking_uri is None:
        return []
    try:
        known = read_sync_record(run)
    except UnusableFileError as e:
        return [("MLflow", str(e))]
    if not known.synced:
        why = known.problem or "it is still being uploaded"
        return [("MLflow", f"not uploaded yet: {why}\n`hpcexp sync` uploads the rest")]
    if plan.tracking_uri.startswith("http"):
        base = without_password(plan.tracking_uri)
        return [("MLflow", ui_link(base, known.experiment_id, known.run_id))]
    return [("look", "hpcexp ui")]
