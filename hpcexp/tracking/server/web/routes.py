"""The routes of MLflow that are served, and which of them write. Every other route answers 404.

MLflow has several hundred routes, and each version adds some: an assistant that runs commands, a gateway to language
models, jobs, webhooks. This list names what hpcexp's users need. All else is refused, whether MLflow has it today or
not. `tests/unit/tracking/test_routes.py` compares the list with the routes of the installed MLflow, so that a new
version's routes are decided one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote


class Access(Enum):
    """What a request to a route does."""

    OPEN = "open"
    """Answers everybody who reaches a group's server: a proxy or a service manager asks whether it is well."""
    READ = "read"
    WRITE = "write"
    PASSWORD = "password"  # noqa: S105 - the name of a kind of route
    """Writes, and compares a password that the request carries in its body."""


_Methods = dict[str, Access]
_PREFIXES = {
    "-": ("",),
    "2": ("/api/2.0/mlflow", "/ajax-api/2.0/mlflow"),
    "3": ("/api/3.0/mlflow", "/ajax-api/3.0/mlflow"),
    "api2": ("/api/2.0/mlflow",),
    "ajax2": ("/ajax-api/2.0/mlflow",),
    "files": ("/api/2.0/mlflow-artifacts", "/ajax-api/2.0/mlflow-artifacts"),
}
_TABLE = """
open      GET         -      /health
read      GET         -      /
read      GET         -      /version
read      GET         -      /static-files/<path:file>
read      GET         3      /server-info
read      POST        -      /graphql

read      GET         2      /experiments/get
read      GET         2      /experiments/get-by-name
read      GET,POST    2      /experiments/search
read      POST        ajax2  /experiments/search-datasets
write     POST        2      /experiments/create
write     POST        2      /experiments/update
write     POST        2      /experiments/delete
write     POST        2      /experiments/restore
write     POST        2      /experiments/set-experiment-tag
write     POST        2      /experiments/delete-experiment-tag

read      GET         2      /runs/get
read      POST        2      /runs/search
write     POST        2      /runs/create
write     POST        2      /runs/update
write     POST        2      /runs/delete
write     POST        2      /runs/restore
write     POST        2      /runs/set-tag
write     POST        2      /runs/delete-tag
write     POST        2      /runs/log-batch
write     POST        2      /runs/log-metric
write     POST        2      /runs/log-parameter
write     POST        2      /runs/log-inputs
write     POST        2      /runs/log-model
write     POST        2      /runs/outputs

read      GET         2      /metrics/get-history
read      GET         ajax2  /metrics/get-history-bulk
read      GET         2      /metrics/get-history-bulk-interval

read      GET         2      /artifacts/list
read      GET         -      /get-artifact
read      GET         -      /model-versions/get-artifact
read      GET         files  /artifacts
read      GET         files  /artifacts/<path:file>
write     PUT,DELETE  files  /artifacts/<path:file>
read      GET         files  /presigned/<path:file>
write     POST        files  /mpu/create/<path:file>
write     POST        files  /mpu/complete/<path:file>
write     POST        files  /mpu/abort/<path:file>

read      GET         2      /logged-models/<id>
read      POST        2      /logged-models/search
read      GET         2      /logged-models/<id>/artifacts/directories
read      GET         ajax2  /logged-models/<id>/artifacts/files
write     POST        2      /logged-models
write     PATCH       2      /logged-models/<id>
write     DELETE      2      /logged-models/<id>
write     POST        2      /logged-models/<id>/params
write     PATCH       2      /logged-models/<id>/tags
write     DELETE      2      /logged-models/<id>/tags/<key>

read      GET         2      /registered-models/get
read      GET         2      /registered-models/search
read      GET         2      /registered-models/alias
read      GET,POST    2      /registered-models/get-latest-versions
write     POST        2      /registered-models/create
write     POST        2      /registered-models/rename
write     PATCH       2      /registered-models/update
write     DELETE      2      /registered-models/delete
write     POST        2      /registered-models/set-tag
write     DELETE      2      /registered-models/delete-tag
write     POST        2      /registered-models/alias
write     DELETE      2      /registered-models/alias

read      GET         2      /model-versions/get
read      GET         2      /model-versions/search
read      GET         2      /model-versions/get-download-uri
write     POST        2      /model-versions/create
write     PATCH       2      /model-versions/update
write     DELETE      2      /model-versions/delete
write     POST        2      /model-versions/set-tag
write     DELETE      2      /model-versions/delete-tag
write     POST        2      /model-versions/transition-stage

read      GET         -      /signup
write     POST        api2   /users/create-ui
write     POST        2      /users/create
read      GET         2      /users/current
read      GET         2      /users/get
read      GET         2      /users/list
password  PATCH       2      /users/update-password
write     PATCH       2      /users/update-admin
write     DELETE      2      /users/delete
read      GET         3      /users/current/permissions
read      GET         3      /users/permissions/get
read      GET         3      /users/permissions/list
write     POST        3      /users/permissions/grant
write     POST        3      /users/permissions/revoke
read      GET         3      /users/roles/list
read      GET         3      /roles/get
read      GET         3      /roles/list
read      GET         3      /roles/users/list
read      GET         3      /roles/permissions/list
write     POST        3      /roles/create
write     PATCH       3      /roles/update
write     DELETE      3      /roles/delete
write     POST        3      /roles/assign
write     DELETE      3      /roles/unassign
write     POST        3      /roles/permissions/add
write     PATCH       3      /roles/permissions/update
write     DELETE      3      /roles/permissions/remove
"""

_UNCLEAR = re.compile(r"[\x00-\x1f\x7f\\]")
_MAX_DECODINGS = 10
"""As many as MLflow itself takes before it gives a path up."""


@dataclass(frozen=True)
class Route:
    """One path of the list, for one or several methods."""

    access: Access
    methods: tuple[str, ...]
    path: str
    """As Flask writes it: `<name>` is one segment, `<path:name>` the rest."""


def routes() -> Iterator[Route]:
    """Every route that is served."""
    for line in _TABLE.split("\n"):
        if line:
            access, methods, prefixes, path = line.split()
            for prefix in _PREFIXES[prefixes]:
                yield Route(Access(access), tuple(methods.split(",")), prefix + path)


def access(method: str, path: str) -> Access | None:
    """What a request does, by its method and its path as the server has decoded it; None where it is not served.

    MLflow's routers get this very path, and none of them can take it for another route than this list does: it is
    matched as a whole, and a path that two readers could read differently (`//`, `..`, a backslash, a newline, or one
    of them behind another layer of percent signs) is refused.
    """
    if not is_plain(path):
        return None
    known = _EXACT.get(path)
    if known is None:
        known = next((methods for pattern, methods in _PATTERNS if pattern.fullmatch(path)), {})
    # Flask answers HEAD wherever it answers GET.
    return known.get("GET" if method == "HEAD" else method)


def is_plain(path: str) -> bool:
    """Whether a path can be read in one way alone, however often it is decoded."""
    for _ in range(_MAX_DECODINGS):
        if not path.startswith("/") or _UNCLEAR.search(path):
            return False
        segments = path[1:].split("/")
        if ".." in segments or "." in segments or "" in segments[:-1]:
            return False
        decoded = unquote(path)
        if decoded == path:
            return True
        path = decoded
    return False


def _compiled() -> tuple[dict[str, _Methods], list[tuple[re.Pattern[str], _Methods]]]:
    by_path: dict[str, _Methods] = {}
    for route in routes():
        by_path.setdefault(route.path, {}).update(dict.fromkeys(route.methods, route.access))
    exact = {path: methods for path, methods in by_path.items() if "<" not in path}
    return exact, [(_pattern(path), methods) for path, methods in by_path.items() if "<" in path]


def _pattern(path: str) -> re.Pattern[str]:
    rest_taken = re.sub(r"<path:\w+>", ".+", re.escape(path))
    return re.compile(re.sub(r"<\w+>", "[^/]+", rest_taken))


_EXACT, _PATTERNS = _compiled()
