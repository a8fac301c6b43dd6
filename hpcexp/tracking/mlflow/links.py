"""Where things are: links to pages of MLflow's interface, and the directory of a store's artifacts."""

from __future__ import annotations

from pathlib import Path

_WORKFLOW = "workflowType=machine_learning"


def artifact_root(root: Path) -> Path:
    """Where artifacts of a database store lie."""
    return root.absolute() / "mlartifacts"


def page(experiment_id: str, *, run_id: str = "", model_id: str = "", view: str = "", charts: bool = False) -> str:
    """Link, within the UI, to a run, a model or a saved view of an experiment's runs."""
    place = f"models/{model_id}" if model_id else f"runs/{run_id}" if run_id else "runs"
    more = f"&viewStateShareKey={view}" * bool(view) + "&compareRunsMode=CHART" * charts
    return f"#/experiments/{experiment_id}/{place}?{_WORKFLOW}{more}"


def ui_link(base: str, experiment_id: str | None = None, run_id: str | None = None) -> str:
    """Address of the UI at `base`, of an experiment or of a run in it. It opens in GenAI mode without the query."""
    if experiment_id is not None and run_id is not None:
        return f"{base.rstrip('/')}/{page(experiment_id, run_id=run_id)}"
    place = "experiments" + (f"/{experiment_id}" if experiment_id is not None else "")
    return f"{base.rstrip('/')}/#/{place}?{_WORKFLOW}"
