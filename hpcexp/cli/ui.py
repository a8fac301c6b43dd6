"""`hpcexp ui`: MLflow's interface on the store that the runs go to."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hpcexp.cli.arguments import parser
from hpcexp.errors import ConfigError, RunError
from hpcexp.record.ui import port_problem, ui_command, ui_environment, ui_link
from hpcexp.record.uri import resolve_uri, sqlite_path, uri_problem


def ui(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    p = parser("ui", "Serve MLflow's interface on the runs, until Ctrl-C.")
    p.add_argument("--uri", help="another store (default: MLFLOW_TRACKING_URI, or SQLite beside the runs)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: only this machine)")
    p.add_argument("--port", type=int, default=5000, help="port to listen at (default: 5000)")
    a = p.parse_args(argv)
    root = a.root.resolve()
    uri = resolve_uri(a.uri, root, os.environ)
    problem = uri_problem(uri)
    if problem:
        raise ConfigError(problem.replace("tracking.uri=", "--uri "))
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise RunError(
            f"There is no {database} yet: no run has been recorded there.\nFix: hpcexp train, or --root DIR."
        )
    command = ui_command(uri, root, a.host, a.port)
    if problem := port_problem(a.host, a.port):
        raise RunError(problem)
    print(f"{ui_link(f'http://{a.host}:{a.port}')}   (Ctrl-C ends it)", flush=True)
    # In this process's place, so that what ends it ends the server.
    os.execvpe(command[0], command, ui_environment(os.environ))  # noqa: S606 - a fixed command of our own
