"""The best weights of a run as a model in MLflow: uploaded, or linked by path and digest."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import last_values
from hpcexp.runs.records.results import Summary
from hpcexp.text.key_names import KeyTable
from hpcexp.tracking.mlflow import description
from hpcexp.tracking.mlflow.links import page
from hpcexp.tracking.mlflow.renamed import by_key
from hpcexp.tracking.mlflow.store import MAX_DIGEST, Model, Store
from hpcexp.tracking.sync import artifacts
from hpcexp.tracking.sync.run_tags import NOTE, RunTags

_LIMIT_BYTES = 100_000_000
"""Up to this size `tracking.model=auto` uploads the best weights."""


def send_model(
    store: Store,
    run: RunDir,
    plan: Plan,
    tags: RunTags,
    summary: Summary,
    *,
    run_id: str,
    experiment_id: str,
    is_new: bool,
    keys: KeyTable,
) -> str:
    """Make or update the run's model; its id.

    `is_new`: the MLflow run was just made, and has no model yet. `keys`: those of the run's metrics.
    """
    model = Model(
        tags.model_name,
        description.params(plan),
        {**tags.of_model(summary), NOTE: _note(run, plan, summary, page(experiment_id, run_id=run_id))},
        tuple(by_key(last_values(run.journal, "val", "test"), keys)),
        _dataset(plan),
    )
    model_id = store.model(run_id, experiment_id, model, is_new=is_new)
    with ExitStack() as stack:
        files = (run.best, run.plan) if is_uploaded(run.best, plan) else ()
        paths = [stack.enter_context(artifacts.handed(run.path, file, artifacts.NO_LIMIT)) for file in files]
        store.fill_model(run_id, model_id, model, filter(None, paths))
    return model_id


def is_uploaded(checkpoint: Path, plan: Plan) -> bool:
    """Whether `tracking.model` has a checkpoint of that size uploaded."""
    return plan.settings.tracking.model == "always" or checkpoint.stat().st_size <= _LIMIT_BYTES


def _note(run: RunDir, plan: Plan, summary: Summary, address: str) -> str:
    return description.model_note(plan, summary.best, f"[{plan.name}]({address})", str(run.best.absolute()))


def _dataset(plan: Plan) -> tuple[str, str] | None:
    """Name and digest of the data, if planning knew them."""
    facts = plan.data
    return None if facts is None else (plan.choices.get("data", "data"), facts.fingerprint[:MAX_DIGEST])
