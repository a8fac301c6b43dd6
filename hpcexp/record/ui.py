"""MLflow's web interface on a store of runs."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from hpcexp.errors import ConfigError

UI_ENVIRONMENT = {
    # Without job workers and telemetry the server needs a fifth of the memory and talks to nobody.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_WORKFLOW = "workflowType=machine_learning"


def artifact_root(root: Path) -> Path:
    """Where artifacts of a database store lie."""
    return root.absolute() / "mlartifacts"


def ui_command(uri: str, root: Path, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Command that serves MLflow's UI on the database `uri`; ConfigError where `uri` is a server itself."""
    if uri.startswith(("http://", "https://")):
        raise ConfigError(
            f"tracking.uri={uri} is an MLflow server, which has the UI already.\nFix: open {ui_link(uri)}."
        )
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri, "--registry-store-uri", uri),
        *("--default-artifact-root", artifact_root(root).as_uri(), "--no-serve-artifacts"),
        # One worker: several lose TCP_NODELAY and take 44 ms a request instead of 2.
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def ui_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for `ui_command`; what `environ` sets wins."""
    return {**UI_ENVIRONMENT, **environ}


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


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen at this port, and the way out; None where it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except socket.gaierror as e:
            return f"--host {host}: {e.strerror}.\nFix: --host 127.0.0.1, or an address of this machine."
        except (OSError, OverflowError) as e:
            return f"--port {port}: {getattr(e, 'strerror', None) or e} ({host}).\nFix: --port {min(port, 65534) + 1}"
    return None
