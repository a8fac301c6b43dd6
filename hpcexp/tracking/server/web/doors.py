"""What a request must pass before MLflow's application sees it: an ASGI application around that one."""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response

from hpcexp.tracking.server.web.login import Login, Refusal, signed_in
from hpcexp.tracking.server.web.routes import Access, access
from hpcexp.tracking.server.web.token import Token

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

READ_ONLY = "This interface only reads.\nFix: hpcexp ui --write"


@dataclass(frozen=True)
class Hosts:
    """The names that a server may be called by. A page of another name cannot use a browser that is let in."""

    names: tuple[str, ...]
    """Host names and addresses; `*` in one stands for anything."""
    any_address: bool = False
    """Also by every IP address: no other page can have one for its name."""

    def allow(self, host: str) -> bool:
        """Whether the value of a header `Host` is one of them, with any port."""
        name = _name(host)
        if name is None:
            return False
        return (self.any_address and _is_address(name)) or any(fnmatch.fnmatchcase(name, _bare(n)) for n in self.names)


class Door(Protocol):
    """Finds out who makes a request."""

    async def refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """What somebody who is not let in is answered; None for everybody else."""


class AccountsDoor:
    """Lets in who has an account."""

    def __init__(self, login: Login) -> None:
        self._login = login

    async def refusal(self, scope: Scope, headers: Headers) -> Response | None:
        who = await self._login.identify(headers.get("authorization"), _address(scope))
        if isinstance(who, Refusal):
            return _refused(who)
        if access(scope["method"], scope["path"]) is Access.PASSWORD:
            scope["hpcexp.user"] = who
            if (refused := self._login.begin_change(who, _address(scope))) is not None:
                return _refused(refused)
        signed_in(who)
        return None

    def answered(self, scope: Scope, status: int) -> None:
        """Learn how a request went that carried a password."""
        user = scope.get("hpcexp.user")
        if user is not None and status < 400:
            self._login.changed(user, _address(scope))


class OneUserDoor:
    """Lets in who has the token that was printed."""

    def __init__(self, token: Token) -> None:
        self._token = token

    async def refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if scope["path"] == "/" and scope["method"] == "GET":
            query = scope["query_string"].decode("latin-1")
            if (answer := self._token.welcome(query, headers.get("sec-fetch-site"))) is not None:
                return answer
        # The cookie goes along with what pages at other ports of this host load, too.
        is_loaded_elsewhere = headers.get("sec-fetch-site") in ("same-site", "cross-site")
        if is_loaded_elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("Pages of other sites may not ask this server.\n", 403)
        if self._token.is_shown(headers.get("authorization"), headers.get("cookie")):
            return None
        return PlainTextResponse(
            "This interface is its user's alone: open the address with the token that `hpcexp ui` prints, or send the "
            "token as `Authorization: Bearer TOKEN` (MLFLOW_TRACKING_TOKEN).\n",
            401,
            {"WWW-Authenticate": "Bearer"},
        )


class Doors:
    """`app` behind the checks of host, route and, where there is one, `door`. `is_read_only`: nothing is written."""

    def __init__(
        self, app: ASGIApp, hosts: Hosts, door: AccountsDoor | OneUserDoor | None, *, is_read_only: bool
    ) -> None:
        self._app, self._hosts, self._door, self._is_read_only = app, hosts, door, is_read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # None of the routes is one. Closed before it was accepted it is answered 403.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        answer = await self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, self._watched(scope, send))

    async def _refusal(self, scope: Scope) -> Response | None:
        kind = access(scope["method"], scope["path"])
        if kind is None:
            return _error(404, "ENDPOINT_NOT_FOUND", "This server does not serve that.")
        if kind is Access.OPEN and not isinstance(self._door, OneUserDoor):
            return None
        headers = Headers(scope=scope)
        if (answer := self._foreign(headers)) is not None:
            return answer
        if self._door is not None and (answer := await self._door.refusal(scope, headers)) is not None:
            return answer
        if self._is_read_only and kind in (Access.WRITE, Access.PASSWORD):
            return _error(403, "PERMISSION_DENIED", READ_ONLY)
        return None

    def _foreign(self, headers: Headers) -> Response | None:
        """The answer to a request that another site's page may have made."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.allow(hosts[0]):
            return PlainTextResponse(
                "This server is not called by that name: another site may be misusing the browser.\n"
                "Fix: --allowed-hosts NAME, where it is started.\n",
                403,
            )
        if any(not _is_origin_of(origin, hosts[0]) for origin in headers.getlist("origin")):
            return PlainTextResponse("Pages of other sites may not ask this server.\n", 403)
        return None

    def _watched(self, scope: Scope, send: Send) -> Send:
        if not isinstance(self._door, AccountsDoor) or "hpcexp.user" not in scope:
            return send
        door = self._door

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                door.answered(scope, message["status"])
            await send(message)

        return watching


def _error(status: int, code: str, text: str) -> Response:
    """As MLflow's clients and pages read it."""
    return JSONResponse({"error_code": code, "message": text}, status)


def _refused(refusal: Refusal) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="mlflow", charset="UTF-8"'} if refusal.status == 401 else {}
    if refusal.retry_s:
        headers["Retry-After"] = str(refusal.retry_s)
    return PlainTextResponse(refusal.text + "\n", refusal.status, headers)


def _address(scope: Scope) -> str:
    client: Sequence[str] | None = scope.get("client")
    return client[0] if client else ""


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether a header `Origin` names the server that was asked. Which of http and https a proxy may have changed."""
    scheme, separator, place = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return bool(separator) and port is not None and place.lower().removesuffix(port) == host.lower().removesuffix(port)


def _name(host: str) -> str | None:
    """Name or address in a header `Host`; None where it is none with a port."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        is_whole = bool(bracket) and (port == "" or port.startswith(":"))
        port = port[1:]
    else:
        name, _, port = host.partition(":")
        is_whole = True
    if not is_whole or not name or (port and not (port.isascii() and port.isdigit())):
        return None
    return name.lower().removesuffix(".")


def _bare(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
