"""Who asks: names and passwords of a group's server, checked in one place for all of MLflow's routes.

MLflow checks passwords in several places, without a limit, and answers faster where an account does not exist. Here
each request is checked once, before MLflow sees it; MLflow gets the result by its `authorization_function`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections import Counter, OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from werkzeug.security import check_password_hash, generate_password_hash

from hpcexp.files.databases import reading
from hpcexp.tracking.server.accounts import DEFAULT_PASSWORDS
from hpcexp.tracking.server.web.limits import Attempts, network

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

_HASHING_THREADS = 2
"""Hashing takes 50 ms and 32 MB; what comes in a flood must leave cores to those who are logged in."""
_READING_THREADS = 8
"""Of their own, so that nobody waits for a slow upload to be let in."""
_MOST_WAITING = 64
_MOST_WAITING_FROM = 16
"""Passwords that wait for their turn to be hashed, in all and from one address."""
_MOST_REMEMBERED = 10_000

_user: ContextVar[str | None] = ContextVar("hpcexp_user", default=None)
"""Who makes the request that is being answered. Threads that Starlette starts for it inherit it."""


@dataclass(frozen=True)
class Refusal:
    """Why somebody is not let in: an HTTP status, and the seconds after which it may be tried again."""

    status: int
    text: str
    retry_s: int = 0


class Login:
    """The accounts in the SQLite database `users`."""

    def __init__(self, users: Path) -> None:
        self._users = users
        self._attempts = Attempts()
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, str] = OrderedDict()
        """Digest of a name and a password → the stored hash that they were compared with."""
        self._waiting: Counter[str] = Counter()
        """Network → how many passwords from there are being hashed, or wait for it."""
        self._asked: dict[bytes, anyio.Event] = {}
        """What is being hashed: a hundred jobs that start at once ask for the same."""
        self._hashing = anyio.CapacityLimiter(_HASHING_THREADS)
        self._reading = anyio.CapacityLimiter(_READING_THREADS)
        self._nobody = generate_password_hash(secrets.token_hex())

    async def identify(self, header: str | None, address: str) -> str | Refusal:
        """Name of the user whose name and password the header `Authorization` has."""
        given = _credentials(header)
        if given is None:
            return Refusal(401, "This server wants a user and a password.")
        user, password = given
        stored = await anyio.to_thread.run_sync(self._stored_hash, user, limiter=self._reading)
        digest = self._digest(user, password)
        while (asked := self._asked.get(digest)) is not None:
            await asked.wait()
        # What was right is right until the password changes, so no attacker can have its user wait.
        if stored is not None and self._right.get(digest) == stored:
            self._right.move_to_end(digest)
            return user
        place = network(address)
        if self._waiting.total() >= _MOST_WAITING or self._waiting[place] >= _MOST_WAITING_FROM:
            return _too_many(1)
        if wait_s := self._attempts.begin(user, address):
            return _too_many(wait_s)
        self._asked[digest] = done = anyio.Event()
        self._waiting[place] += 1
        try:
            # Somebody who does not exist takes as long as somebody who does.
            is_right = await anyio.to_thread.run_sync(
                check_password_hash, stored or self._nobody, password, limiter=self._hashing
            )
        finally:
            self._waiting[place] -= 1
            self._waiting += Counter()  # forgets those of which there are none
            del self._asked[digest]
            done.set()
        if not is_right or stored is None or password in DEFAULT_PASSWORDS:
            return Refusal(401, "There is no such user with this password.")
        self._attempts.succeeded(user, address)
        self._remember(digest, stored)
        return user

    def begin_change(self, user: str, address: str) -> Refusal | None:
        """Count a request that carries `user`'s password in its body; `changed` tells that it was right."""
        wait_s = self._attempts.begin(_CHANGE + user, address)
        return _too_many(wait_s) if wait_s else None

    def changed(self, user: str, address: str) -> None:
        """The password of a request that `begin_change` counted was right."""
        self._attempts.succeeded(_CHANGE + user, address)

    def _remember(self, digest: bytes, stored: str) -> None:
        self._right[digest] = stored
        while len(self._right) > _MOST_REMEMBERED:
            self._right.popitem(last=False)

    def _digest(self, user: str, password: str) -> bytes:
        # The length keeps ("ab", "c") from ("a", "bc"); the key is of this process and makes no password findable.
        return hmac.digest(self._key, f"{len(user)}:{user}{password}".encode(errors="surrogatepass"), "sha256")

    def _stored_hash(self, user: str) -> str | None:
        with reading(self._users) as connection:
            found = connection.execute("SELECT password_hash FROM users WHERE username = ?", (user,)).fetchone()
        return found and str(found[0])


_CHANGE = "\0change\0"
"""Before a user's name: guesses at a password by somebody who is logged in count by themselves."""


def signed_in(user: str) -> None:
    """Have MLflow take the request that is being answered as this user's."""
    _user.set(user)


def authorization() -> Authorization | Response:
    """MLflow's `authorization_function`: who makes the request, as `signed_in` says."""
    from flask import make_response
    from werkzeug.datastructures import Authorization

    user = _user.get()
    if user is None:
        return make_response("Nobody is logged in.", 401)
    return Authorization("basic", {"username": user, "password": ""})


def _credentials(header: str | None) -> tuple[str, str] | None:
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        plain = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return None
    try:
        text = plain.decode()
    except UnicodeDecodeError:
        text = plain.decode("latin-1")  # as the Python package requests writes it, which MLflow's client uses
    user, colon, password = text.partition(":")
    return (user, password) if colon and user else None


def _too_many(wait_s: int) -> Refusal:
    return Refusal(429, f"Too many wrong passwords: try again in {wait_s} s.", wait_s)
