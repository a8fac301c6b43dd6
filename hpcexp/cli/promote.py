"""`hpcexp promote`: a run's model under a name, in MLflow's registry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hpcexp.cli.shared.arguments import RUN_HELP, configured_uri, find_run, parser
from hpcexp.cli.shared.trust import add_trust, check_trust
from hpcexp.errors import ConfigError, RunError
from hpcexp.lineage.manifest import differences, last_record
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.status.state import current_state
from hpcexp.text.formatting import pairs
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.sync.destination import address, destined


def promote(argv: Sequence[str]) -> int:
    """Exit status 0: the name stands for the run's best weights."""
    p = parser("promote", "Register a run's best weights in MLflow, as a model that its tools load by name.")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--to", required=True, metavar="NAME[@ALIAS]", help="for example digits@champion")
    p.add_argument("--unverified", action="store_true", help="accept a run, or model code, that has changed since")
    add_trust(p)
    a = p.parse_args(argv)
    name, alias = _name(a.to)
    run = find_run(a.root, a.run)
    check_trust(run, is_trusted=a.trust)
    plan = destined(run)
    _check(run, plan, is_verified=not a.unverified)
    version, before = _registered(run, plan, name, alias, is_verified=not a.unverified)
    address = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"
    print(address)
    was = f", which was version {before}" if before not in (None, version) else ""
    rows = [("version", version), *([("alias", f"{alias}{was}")] if alias else [])]
    rows += [("run", f"{plan.experiment}/{plan.name}"), ("load", f'mlflow.pyfunc.load_model("{address}")')]
    print(pairs(rows))
    return 0


def _name(text: str) -> tuple[str, str | None]:
    name, at, alias = text.partition("@")
    if not name or re.search(r"[/:'\"%]", name):
        raise ConfigError(f"--to {text}: a model's name has neither / nor : nor quotes.\nFix: --to digits@champion")
    if at and (not re.fullmatch(r"[\w-]+", alias) or alias == "latest" or re.fullmatch(r"v\d+", alias, re.IGNORECASE)):
        raise ConfigError(
            f"--to {text}: an alias has letters, digits, - and _, and is neither latest nor like v1.\n"
            f"Fix: --to {name}@champion"
        )
    return name, alias or None


def _check(run: RunDir, plan: Plan, *, is_verified: bool) -> None:
    """RunError where there is nothing to promote, or what is there is not what was trained."""
    state = current_state(run)
    if state not in (RunState.FINISHED, RunState.PRUNED):
        fix = "wait for its end." if state is RunState.RUNNING else "resume it with hpcexp train …"
        raise RunError(f"{run.path} is {state}: it has no final result.\nFix: {fix}")
    if not run.best.is_file():
        raise RunError(f"{run.best} is not there: the run has no best weights.")
    if plan.tracking_uri is None:
        raise RunError("The run is not in MLflow (tracking=off).\nFix: hpcexp sync RUN --uri … first.")
    if is_verified and (found := differences(run)):
        raise RunError(
            f"{run.path} was changed since it ended:\n{pairs(found)}\nFix: --unverified promotes it as it is."
        )


def _registered(run: RunDir, plan: Plan, name: str, alias: str | None, *, is_verified: bool) -> tuple[str, str | None]:
    """Number of the version, and of the one that the alias stood for before."""
    from hpcexp.tracking.mlflow.credentials import Named
    from hpcexp.tracking.mlflow.store import Stores, problem_of
    from hpcexp.tracking.sync.run import alone_in_turn
    from hpcexp.tracking.sync.run_process import sync
    from hpcexp.tracking.sync.upload import RunUpload

    stores = Stores(Named(lambda: [configured_uri()]))
    if (problem := sync(run.path, stores)) is not None:
        raise RunError(f"MLflow does not have the run: {problem}\nFix: fix that, then repeat the command.")
    known = read_sync_record(run)
    if (model_id := known.model_id) is None or known.run_id is None:
        raise RunError("MLflow has no model of this run (tracking.model=never).\nFix: train with tracking.model=auto.")
    try:
        with alone_in_turn(run):
            registry = RunUpload(run, plan, stores).start().registry()
        if not registry.is_loadable(model_id):
            with TemporaryDirectory() as scratch:
                exported = Path(scratch) / "model"
                registry.make_loadable(model_id, exported, _exported(run, plan, exported, is_verified=is_verified))
        tags = {names.RUN: f"{plan.experiment}/{plan.name}", names.SIGNATURE: plan.signature}
        seal = last_record(run.lineage).sha256
        tags |= {names.SEAL: seal} if seal else {}
        version = registry.register(name, f"Trained by hpcexp: {plan.experiment}.", model_id, known.run_id, tags)
        return version, registry.point(name, alias, version) if alias else None
    except (OSError, RunError):
        raise
    except Exception as e:  # whatever a server or a database says
        raise RunError(f"MLflow refuses the model: {problem_of(e, address(run, plan))}") from e


def _exported(run: RunDir, plan: Plan, path: Path, *, is_verified: bool) -> list[str]:
    """Export the model; which code of it is not what it was trained with."""
    from hpcexp.cli.model import edited_since, export_mlflow, trained_of

    trained = trained_of(run)
    if (edited := edited_since(trained)) and is_verified:
        commit = plan.lineage.get("git.commit")
        then = f"restore that code ({'commit ' + commit[:12] if commit else 'hpcexp why shows what differs'})"
        raise RunError(
            f"The model's code was edited since: {', '.join(edited)}. Its weights would go into another model.\n"
            f"Fix: {then}, or --unverified promotes it with the current code."
        )
    export_mlflow(trained, path)
    return edited
