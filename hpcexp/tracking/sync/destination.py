"""Where a run goes in MLflow: where its plan says, unless `hpcexp sync --uri` or `--experiment` has changed that."""

from __future__ import annotations

from dataclasses import replace

from hpcexp.errors import ConfigError, RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.untrusted import read_text
from hpcexp.plan import Plan, load_plan
from hpcexp.redaction import without_password
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.status.state import current_state
from hpcexp.tracking.mlflow.uri import resolve_uri, uri_problem


def destined(run: RunDir) -> Plan:
    """The frozen plan, with the store and the experiment that the run goes to now, and the directory that it is in."""
    plan = load_plan(run.plan)
    uri, experiment = _redirected(run)
    tracking = {**vars(plan.settings.tracking), **({"experiment": experiment} if experiment else {})}
    return replace(
        plan,
        run_dir=str(run.path.absolute()),
        tracking_uri=without_password(uri) if uri else plan.tracking_uri,
        config={**plan.config, "tracking": tracking},
    )


def address(run: RunDir, plan: Plan) -> str:
    """The store's address, with its password."""
    return _redirected(run)[0] or plan.tracking_uri or ""


def direct(run: RunDir, plan: Plan, *, goes_on: bool) -> None:
    """Have an attempt, whose plan is about to be frozen, go where its command says.

    One that `goes_on` and is asked for as it was before goes where `hpcexp sync` has sent the run since.
    """
    if goes_on and _asked(load_plan(run.plan)) == _asked(plan) != _asked(destined(run)):
        return
    if plan.tracking_uri not in (None, _asked(plan)[0]):
        write_atomic(run.secret_uri, f"{plan.tracking_uri}\n", mode=0o600)
    else:
        run.secret_uri.unlink(missing_ok=True)


def check_redirect(run: RunDir, uri: str | None, experiment: str | None) -> None:
    """RunError or ConfigError where `redirect` would make no sense."""
    if uri is not None and (problem := uri_problem(uri) if uri else "--uri is empty.\nFix: --uri http://host:5000"):
        raise ConfigError(problem.replace("tracking.uri=", "--uri "))
    if experiment == "":
        raise ConfigError("--experiment is empty.\nFix: --experiment NAME")
    if current_state(run) in (RunState.PLANNED, RunState.RUNNING):
        raise RunError(f"{run.path} is no run that has ended.\nFix: hpcexp train, or wait for it.")
    plan = destined(run)
    if read_sync_record(run).synced and plan.tracking_uri is not None:
        raise RunError(f"{run.path} is in MLflow already, at {plan.tracking_uri}.\nFix: without --uri, --experiment.")
    if uri is None and plan.tracking_uri is None:
        raise RunError(f"{run.path} goes nowhere yet (tracking=off).\nFix: --uri sqlite:///runs/mlflow.db")


def redirect(run: RunDir, uri: str | None, experiment: str | None) -> None:
    """Have a run that MLflow does not have yet go to another store or experiment, or there with another password."""
    before = destined(run)
    send_to(run, resolve_uri(uri, run.path.parent.parent, {}) if uri else address(run, before), experiment)
    now = destined(run)
    if _asked(before) != _asked(now):
        run.mlflow.unlink(missing_ok=True)  # of a run that was begun elsewhere


def send_to(run: RunDir, uri: str, experiment: str | None = None) -> None:
    """Note where the run goes, in a file beside its sealed plan."""
    write_atomic(run.secret_uri, f"{uri}\n{experiment or _redirected(run)[1]}\n", mode=0o600)


def _asked(plan: Plan) -> tuple[str | None, str]:
    """Store, without its password, and experiment."""
    return plan.tracking_uri and without_password(plan.tracking_uri), str(plan.settings.tracking.experiment)


def _redirected(run: RunDir) -> tuple[str, str]:
    """Address and experiment of the run's own file; empty where it has none, or says nothing of it."""
    try:
        lines = read_text(run.secret_uri).splitlines()
    except FileNotFoundError:
        lines = []
    uri, experiment, *_ = [*lines, "", ""]
    return uri.strip(), experiment.strip()
