"""The routes of the installed MLflow, with accounts, as its own routers have them; printed as JSON.

A process of its own, as importing MLflow's server leaves much behind.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Methods and paths of FastAPI's routes, the mounted Flask application's included."""
    from starlette.routing import Mount

    for route in app.routes:
        yield from _of(route)
        if isinstance(route, Mount):
            for rule in route.app.app.url_map.iter_rules():
                for method in rule.methods - {"HEAD", "OPTIONS"}:
                    yield method, rule.rule


def _of(route: Any) -> Iterator[tuple[str, str]]:
    if hasattr(route, "effective_candidates"):  # a router that was included
        for inner in (*route.effective_candidates(), *route.effective_low_priority_routes()):
            yield from _of(inner)
        return
    original = getattr(route, "original_route", route)
    path = getattr(route, "path", None) or original.path
    if path == "":
        return  # where Flask is mounted
    # A route without methods is a websocket, or answers all of them.
    for method in getattr(original, "methods", None) or ["*"]:
        yield method, re.sub(r"\{(\w+)\}", r"<\1>", re.sub(r"\{(\w+):path\}", r"<path:\1>", path))


def main() -> None:
    """Print all routes, and the fields of the GraphQL schema."""
    with TemporaryDirectory() as place:
        ini = Path(place) / "auth.ini"
        users = f"sqlite:///{place}/users.db"
        ini.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\nadmin_username = admin\n")
        os.environ.update(
            MLFLOW_AUTH_CONFIG_PATH=str(ini),
            MLFLOW_FLASK_SERVER_SECRET_KEY="secret",
            MLFLOW_DISABLE_TELEMETRY="true",
            _MLFLOW_AUTH_ADMIN_BOOTSTRAPPED="true",
            _MLFLOW_SGI_NAME="uvicorn",
            _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{place}/mlflow.db",
        )
        from mlflow.server.auth import create_app
        from mlflow.server.graphql.graphql_schema_extensions import schema

        graph = schema.graphql_schema
        found = {
            "routes": sorted(set(routes(create_app()))),
            "queries": sorted(graph.query_type.fields),
            "mutations": sorted(graph.mutation_type.fields),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
