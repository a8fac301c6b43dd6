"""The application: MLflow's, with a page of ours, behind our doors. Importing this module imports MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import make_response
from mlflow import server
from mlflow.server.handlers import initialize_backend_stores
from starlette.responses import HTMLResponse

from hpcexp.tracking.mlflow.schemas import have_accounts, have_store
from hpcexp.tracking.server.web.allowed_paths import restrict_paths
from hpcexp.tracking.server.web.doors import AccountsDoor, Doors, Hosts, OneUserDoor
from hpcexp.tracking.server.web.graphql import keep_queries
from hpcexp.tracking.server.web.login import Login
from hpcexp.tracking.server.web.page import page
from hpcexp.tracking.server.web.settings import ServerSettings
from hpcexp.tracking.server.web.token import Token

_CURRENT_USER = "get_current_user"

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


def application(settings: ServerSettings) -> ASGIApp:
    """What answers requests. MLflow's own settings are in the environment, from before this module was imported."""
    artifacts = Path(settings.artifacts)
    if settings.users:
        restrict_paths(artifacts, None)
    else:
        restrict_paths(None, artifacts)
    keep_queries()
    # MLflow would change an older database in its place.
    if settings.users:
        have_accounts(Path(settings.users))
    have_store(os.environ["_MLFLOW_SERVER_FILE_STORE"], os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"])
    initialize_backend_stores()
    inner: ASGIApp
    door: AccountsDoor | OneUserDoor | None
    if settings.users:
        from mlflow.server.auth import create_app

        inner = create_app()
        server.app.config["SESSION_COOKIE_SAMESITE"] = "Strict"
        server.app.view_functions[_CURRENT_USER] = _with_passwords(server.app.view_functions[_CURRENT_USER])
        door = AccountsDoor(Login(Path(settings.users)))
    else:
        from mlflow.server.fastapi_app import app

        inner = app
        door = OneUserDoor(Token(settings.token, settings.port)) if settings.token else None
    hosts = Hosts(settings.names, settings.any_address)
    return Doors(_with_page(inner), hosts, door, is_read_only=settings.is_read_only)


def _with_passwords(view: Callable[..., Any]) -> Callable[..., Any]:
    """MLflow's view of the current user, which tells its pages that passwords can be changed here.

    It tells them so itself only where it checks passwords itself.
    """

    def current_user() -> Any:
        answer = make_response(view())
        if answer.is_json and isinstance(answered := answer.get_json(), dict):
            answer.set_data(json.dumps({**answered, "is_basic_auth": True}))
        return answer

    return current_user


def _with_page(app: ASGIApp) -> ASGIApp:
    """`app` with our page instead of its own."""
    static = server.app.static_folder
    assert static is not None
    start = HTMLResponse(page(Path(static) / "index.html"), headers={"Cache-Control": "no-cache"})

    async def paged(scope: Scope, receive: Receive, send: Send) -> None:
        await (start if scope["path"] == "/" else app)(scope, receive, send)

    return paged
