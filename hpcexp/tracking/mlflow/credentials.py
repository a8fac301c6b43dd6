"""Which servers get a user's credentials: those that the user names, and no other that a run or a server names.

A run directory says where its metrics go, and may be anybody's. MLflow, requests, boto3 and libpq take passwords,
tokens and certificates from the environment and the home directory for whatever host they are sent to.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hpcexp.data.digests import cache_dir
from hpcexp.errors import RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.untrusted import UnusableFileError, read_text
from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.uri import PORTS, sqlite_path

if TYPE_CHECKING:
    import urllib.request
    from ssl import SSLContext

_SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH")
"""Of MLflow's variables those that show nobody who one is."""
_SECRET = ("MLFLOW_TRACKING_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_", "PG", "MYSQL_")
"""What variables with credentials of MLflow, clouds and databases begin with."""
_FILES = ("~/.mlflow/credentials", "~/.netrc")
_NOWHERE = {"NETRC": os.devnull, "PGPASSFILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
_REMEMBERED, _WITH = "servers", "credentials"
"""File of the user's cache, and what it says of a server that was named with credentials."""
_MOST_KNOWN = 100
"""Servers that are remembered."""
_ARTIFACTS = "mlflow-artifacts"


class Named:
    """The servers that this user has named.

    `command_uris`: addresses of this command (`--uri`, the project's configuration), read when they are needed. Where
    `MLFLOW_TRACKING_URI` is set, what else is in the environment belongs to that server; where it is not, to the
    servers that commands of this user have named before, with credentials.
    """

    def __init__(
        self, command_uris: Callable[[], Iterable[str | None]], environ: Mapping[str, str] = os.environ
    ) -> None:
        self._command_uris = command_uris
        self._environ = environ
        self._more: set[str] = set()
        self._warned: set[str] = set()

    def add(self, uri: str | None) -> None:
        """Take a server that this command names, too; it is remembered where it comes with credentials."""
        if uri and (server := origin(uri)) is not None:
            self._more.add(server)
            _remember(server, self._environ)

    def has(self, uri: str) -> bool:
        """Whether the server of `uri` gets credentials. Files are on no server."""
        server = origin(uri)
        if server is None or server in self._more:
            return True
        own = self._environ.get("MLFLOW_TRACKING_URI")
        known = {origin(own)} if own else {one for one, had in _remembered(self._environ).items() if had}
        return server in known or server in {origin(uri) for uri in self._command_uris() if uri}

    def is_known(self, uri: str) -> bool:
        """Whether a command of this user has named the server at any time, with credentials or without."""
        return self.has(uri) or origin(uri) in _remembered(self._environ)

    def warn(self, uri: str) -> None:
        """Say, once for each server, which credentials it does not get."""
        server, present = origin(uri), _present(self._environ)
        if server is None or server in self._warned or not present:
            return
        self._warned.add(server)
        own = self._environ.get("MLFLOW_TRACKING_URI")
        whose = f" for {without_password(own)} (MLFLOW_TRACKING_URI)," if own else ""
        print(
            f"{' and '.join(present)} {'is' if len(present) == 1 else 'are'}{whose} not sent to {server}, which only "
            f"the run names.\nFix: hpcexp sync RUN --uri {server}, where that is a server of yours.",
            file=sys.stderr,
            flush=True,
        )


def origin(uri: str) -> str | None:
    """Scheme, host and port of a server or a database; None for a file, or what names no host."""
    if sqlite_path(uri) is not None:
        return None
    try:
        parts = urlsplit(uri)
        scheme = parts.scheme.partition("+")[0].lower()
        port = parts.port or PORTS.get(scheme)
    except ValueError:
        return uri  # the server of nobody
    return f"{scheme}://{parts.hostname}:{port}" if parts.hostname else None


def of_artifacts(artifact_uri: str, store_uri: str) -> str | None:
    """The server to which MLflow sends artifacts of a run, by HTTP; None where that is none."""
    scheme, _, rest = artifact_uri.partition(":")
    if scheme not in ("http", "https", _ARTIFACTS):
        return None
    host = rest.removeprefix("//").partition("/")[0] if rest.startswith("//") else ""
    if scheme == _ARTIFACTS:
        return origin(f"{store_uri.partition('://')[0]}://{host}") if host else origin(store_uri)
    return origin(artifact_uri)


def check_artifacts(artifact_uri: str, store_uri: str, *, is_known: bool) -> None:
    """RunError where a server that nobody has named has this machine's files written as artifacts of a run."""
    if not is_known and origin(store_uri) is not None and artifact_uri.partition(":")[0] in ("file", artifact_uri):
        raise RunError(
            f"{without_password(store_uri)} wants artifacts in a directory of this machine, {artifact_uri!r}: "
            "of a server that only the run names that is refused.\nFix: hpcexp sync RUN --uri URI, where it is yours."
        )


@contextmanager
def withheld() -> Iterator[None]:
    """No credentials in this process meanwhile: neither in the environment nor in its home directory."""
    before = dict(os.environ)
    with TemporaryDirectory(prefix="hpcexp-") as home:
        for name in before:
            if name.startswith(_SECRET) and name not in _SETTINGS:
                del os.environ[name]
        os.environ.update(_NOWHERE, HOME=home)
        try:
            yield
        finally:
            for name in (*_NOWHERE, "HOME"):
                os.environ.pop(name, None)
            os.environ.update(before)


class Withheld:
    """An object whose methods are called `withheld`."""

    def __init__(self, target: object) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            with withheld():
                return found(*arguments, **named)

        return call


def opener(context: SSLContext | None = None) -> urllib.request.OpenerDirector:
    """Of addresses, with headers that show who one is: a redirection to another server is an error."""
    import urllib.request

    class SameServer(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
            if origin(newurl) != origin(req.full_url):
                return None
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return urllib.request.build_opener(SameServer, urllib.request.HTTPSHandler(context=context))


def _present(environ: Mapping[str, str]) -> list[str]:
    """Names of the credentials for MLflow that this user has."""
    found = [
        name
        for name, value in environ.items()
        if value and name.startswith(_SECRET[0]) and name not in _SETTINGS and name != "MLFLOW_TRACKING_USERNAME"
    ]
    return sorted(found) + [file for file in _FILES if Path(file).expanduser().exists()]


def _remembered(environ: Mapping[str, str]) -> dict[str, bool]:
    """Server → whether it was named with credentials; the latest first."""
    directory = cache_dir(environ)
    if directory is None:
        return {}
    try:
        if directory.stat().st_uid != os.geteuid():
            return {}
        lines = [line.split() for line in read_text(directory / _REMEMBERED).splitlines()]
    except (OSError, UnusableFileError):
        return {}
    return {server: more == [_WITH] for server, *more in filter(None, lines)}


def _remember(server: str, environ: Mapping[str, str]) -> None:
    directory, known, had = cache_dir(environ), _remembered(environ), bool(_present(environ))
    if directory is None or (server in known and (known[server] or not had)):
        return
    servers = {server: had, **{one: with_it for one, with_it in known.items() if one != server}}
    lines = [f"{one} {_WITH}\n" if with_it else f"{one}\n" for one, with_it in servers.items()]
    with contextlib.suppress(OSError, UnusableFileError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(directory / _REMEMBERED, "".join(lines[:_MOST_KNOWN]), mode=0o600)
