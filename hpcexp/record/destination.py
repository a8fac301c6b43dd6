"""Where a run goes in MLflow: where its plan says, until `hpcexp sync` is told another place."""

from __future__ import annotations

from dataclasses import replace

from hpcexp.errors import ConfigError, RunError
from hpcexp.masking import without_password
from hpcexp.plan import Plan, load_plan
from hpcexp.record.uri import resolve_uri, uri_problem
from hpcexp.rundir import RunDir, read_json, write_atomic


def destined(run: RunDir) -> Plan:
    """The frozen plan, with the store and the experiment that the run goes to now, and the directory that it is in."""
    plan = load_plan(run.plan)
    uri, experiment = _told(run)
    tracking = {**plan.config["tracking"], **({"experiment": experiment} if experiment else {})}
    return replace(
        plan,
        run_dir=str(run.path.absolute()),
        tracking_uri=without_password(uri) if uri else plan.tracking_uri,
        config={**plan.config, "tracking": tracking},
    )


def address(run: RunDir, plan: Plan) -> str:
    """The store's address, with its password."""
    return _told(run)[0] or plan.tracking_uri or ""


def redirect(run: RunDir, uri: str | None, experiment: str | None) -> None:
    """Have a run that MLflow does not have yet go to another store or experiment, or there with another password."""
    if uri is not None:
        uri = resolve_uri(uri, run.path.parent.parent, {})
        if problem := uri_problem(uri):
            raise ConfigError(problem.replace("tracking.uri=", "--uri "))
    before, note = destined(run), read_json(run.mlflow)
    if note.get("delivered") and before.tracking_uri is not None:
        raise RunError(f"{run.path} is in MLflow already, at {before.tracking_uri}.\nFix: without --uri, --experiment.")
    chosen = uri or address(run, before)
    if not chosen:
        raise RunError(f"{run.path} goes nowhere yet (tracking=off).\nFix: --uri sqlite:///runs/mlflow.db")
    send_to(run, chosen, experiment)
    now = destined(run)
    if (before.tracking_uri, before.config["tracking"]) != (now.tracking_uri, now.config["tracking"]):
        run.mlflow.unlink(missing_ok=True)  # of a run that was begun elsewhere


def send_to(run: RunDir, uri: str, experiment: str | None = None) -> None:
    """Note where the run goes, in a file beside its sealed plan."""
    write_atomic(run.secret_uri, f"{uri}\n{experiment or _told(run)[1]}\n", mode=0o600)


def _told(run: RunDir) -> tuple[str, str]:
    """Address and experiment of the run's own file; empty where it has none, or says nothing of it."""
    lines = run.secret_uri.read_text().splitlines() if run.secret_uri.exists() else []
    uri, experiment, *_ = [*lines, "", ""]
    return uri.strip(), experiment.strip()
