"""`hpcexp ui`: MLflow's interface on the store that the runs go to."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from hpcexp.cli.shared.arguments import parser
from hpcexp.errors import ConfigError, RunError
from hpcexp.tracking.mlflow.links import page, ui_link
from hpcexp.tracking.mlflow.uri import resolve_uri, sqlite_path, uri_problem
from hpcexp.tracking.mlflow.views import RESULTS_KEY
from hpcexp.tracking.server.interface import (
    Interface,
    database_only,
    latest_experiment,
    ui_environment,
    ui_settings,
)
from hpcexp.tracking.server.web.listen import listening, listening_at
from hpcexp.tracking.server.web.settings import become


def ui(argv: Sequence[str]) -> NoReturn:
    """Serve until Ctrl-C."""
    a = _arguments(argv)
    interface = _interface(a)
    # Who may open a Unix socket's file needs no token.
    token = secrets.token_urlsafe(24) if interface.socket is None else ""
    with _listening(interface) as listener:
        print(f"Starting MLflow on {interface.root}, which takes some seconds …", file=sys.stderr, flush=True)
        if interface.socket is None:
            interface = replace(interface, port=listener.getsockname()[1])  # --port 0 takes a free one
        settings = ui_settings(interface, listener.fileno(), token, "\n".join(_announcement(interface, token)))
        if a.open:
            settings = replace(settings, opened=_address(interface, token))
        become(settings, ui_environment(interface, os.environ), "ui", str(interface.root))


def _listening(interface: Interface) -> socket.socket:
    if interface.socket is not None:
        return listening_at(interface.socket)
    return listening(interface.host, interface.port)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("ui", "Serve MLflow on the runs, private to you and read-only, until Ctrl-C.")
    p.add_argument("--uri", help="another store (default: MLFLOW_TRACKING_URI, or SQLite beside the runs)")
    p.add_argument("--write", action="store_true", help="allow changes: notes, tags, names, deletions")
    p.add_argument("--open", action="store_true", help="open the browser when the server answers")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    p.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    p.add_argument("--socket", type=Path, metavar="PATH", help="listen on a Unix socket that only you can open, "
                   "for example for `ssh -L 5000:PATH HOST`, instead of host and port")  # fmt: skip
    a = p.parse_args(argv)
    if a.open and a.socket:
        raise ConfigError("--open: a browser opens no Unix socket.\nFix: leave --open or --socket out.")
    return a


def _interface(a: argparse.Namespace) -> Interface:
    root = a.root.resolve()
    uri = resolve_uri(a.uri, root, os.environ)
    if problem := uri_problem(uri):
        raise ConfigError(problem.replace("tracking.uri=", "--uri "))
    database_only(uri)
    file = sqlite_path(uri)
    if file is not None and not file.exists():
        raise RunError(f"There is no {file} yet: no run has been recorded there.\nFix: hpcexp train, or --root DIR.")
    return Interface(uri, root, a.host, a.port, a.socket and a.socket.absolute(), a.write)


def _address(interface: Interface, token: str) -> str:
    """Of the results of the experiment that was recorded last, or of the list of experiments."""
    experiment = latest_experiment(interface.root, interface.store)
    if experiment is None:
        base, hash_sign, place = ui_link(interface.address).partition("#")
    else:
        base, hash_sign, place = f"{interface.address}/", "", page(experiment, view=RESULTS_KEY)
    return f"{base}{f'?token={token}' if token else ''}{hash_sign}{place}"


def _announcement(interface: Interface, token: str) -> Iterator[str]:
    yield f"{_address(interface, token)}   (Ctrl-C ends it)"
    if interface.socket is not None:
        yield f"socket  {interface.socket}   (for `ssh -L 5000:{interface.socket} HOST`, or `curl --unix-socket`)"
    if not interface.may_write:
        yield "It is read-only; --write allows changes."
    if not interface.is_local:
        yield "Others can read it on its way to another machine. `ssh -L 5000:localhost:5000 HOST` needs no --host."
