"""A run's summary for people."""

from __future__ import annotations

from typing import Any

from hpcexp.masking import without_password
from hpcexp.plan import Plan
from hpcexp.record.describe import final_metrics
from hpcexp.record.ui import ui_link
from hpcexp.rundir import RunDir, read_json
from hpcexp.text import duration, metric, near, pairs


def summary_text(plan: Plan, run: RunDir) -> str:
    """How a finished run went, and where to look."""
    summary, status, delivery = read_json(run.summary), run.read_status(), read_json(run.mlflow)
    rows: list[tuple[str, object]] = [(k, metric(v)) for k, v in final_metrics(summary).items()]
    best = summary.get("best") or {}
    if best:
        rows.append(("best", f"{best['monitor']} {metric(best['value'])} in epoch {best['epoch'] + 1}"))
        rows.append(("checkpoint", near(run.path / best["path"])))
    if summary.get("diverged"):
        rows.append(("diverged", "the training loss was not a finite number: see plots/ and metrics.jsonl"))
    if status.get("ended"):
        rows.append(("took", duration(status["ended"] - status["started"])))
    rows.append(("run", near(run.path)))
    rows += _look(plan, delivery)
    return pairs(rows)


def _look(plan: Plan, delivery: dict[str, Any]) -> list[tuple[str, object]]:
    if plan.tracking_uri is None:
        return []
    if not delivery.get("delivered"):
        why = delivery.get("problem") or "the shipper is still at it"
        return [("MLflow", f"not delivered yet: {why}\n`hpcexp sync` sends what is missing")]
    if plan.tracking_uri.startswith("http"):
        base = without_password(plan.tracking_uri)
        return [("MLflow", ui_link(base, delivery["experiment_id"], delivery["run_id"]))]
    return [("look", "hpcexp ui")]
