"""MLflow as the server of a group: its files, what keeps it from starting, its command."""

from __future__ import annotations

import os
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryFile

from hpcexp.errors import ConfigError, InUseError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.locks import held
from hpcexp.files.private import directory_problem, own_files, tighten
from hpcexp.files.untrusted import UnusableFileError, read_bytes
from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.schemas import have_sqlite, is_sqlite_made
from hpcexp.tracking.mlflow.uri import connection_problem, sqlite_path, uri_problem, with_driver
from hpcexp.tracking.server.web.environment import environment
from hpcexp.tracking.server.web.listen import port_problem
from hpcexp.tracking.server.web.settings import ServerSettings

PERMISSIONS = ("NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE")
"""What a user may do with an experiment that nobody has given or denied him."""

ARTIFACTS = "mlartifacts"
_POOL = {
    # Of 100 writers 29 to 68 get through with SQLAlchemy's own numbers, all with these.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "60",
}
_MAX_KEY_BYTES = 4096
_PROXIED = "mlflow-artifacts:/"
_AUTHORIZATION = "hpcexp.tracking.server.web.login:authorization"


@dataclass(frozen=True)
class Server:
    """What is to be served, and where."""

    data: Path
    """Directory of the artifacts, the accounts and, unless `store` is elsewhere, the database."""
    store: str
    """URI of MLflow's database."""
    host: str
    port: int
    names: tuple[str, ...]
    """Host names that it may be called by."""
    certificate: Path | None
    key: Path | None
    admin: str
    permission: str
    forwarded_from: tuple[str, ...] = ()
    """Proxies whose word is taken for whom they ask for."""

    @property
    def artifacts(self) -> Path:
        return self.data / ARTIFACTS

    @property
    def users(self) -> Path:
        """SQLite database of the accounts."""
        return self.data / "users.db"

    @property
    def auth(self) -> Path:
        """MLflow's settings of the accounts."""
        return self.data / "auth.ini"

    @property
    def secret(self) -> Path:
        """The key that sessions of the sign-up page are signed with."""
        return self.data / "secret"

    @property
    def passphrase(self) -> Path:
        """What MLflow would encrypt stored secrets with, instead of a passphrase that everybody knows."""
        return self.data / "passphrase"

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"


def check(server: Server) -> None:
    """ConfigError with everything that would keep the server from working; starts nothing."""
    if problems := list(_problems(server)):
        raise ConfigError(problems)


def unserved(data: Path) -> AbstractContextManager[int]:
    """Keep others from serving the directory, by a lock of this descriptor; InUseError names who serves it."""
    return held(data / ".serve.lock", f"{data} is served by", "stop it, or another directory")


def prepare(server: Server) -> None:
    """Have the files that the server needs before it starts, its owner's alone."""
    with own_files():
        server.artifacts.mkdir(exist_ok=True)
        for place in _places(server.data):
            tighten(place)
        for file in (server.secret, server.passphrase):
            if not os.path.lexists(file):
                write_atomic(file, secrets.token_hex(32), mode=0o600)
            _key(file)
        write_atomic(server.auth, _auth_ini(server), mode=0o600)
        if (path := sqlite_path(server.store)) is not None and not is_sqlite_made(path):
            have_sqlite(path, _PROXIED)


def settings(server: Server, socket: int, message: str) -> ServerSettings:
    """How `server` is served at the socket of this descriptor; `message` is printed once it answers."""
    return ServerSettings(
        socket=socket,
        port=server.port,
        names=server.names,
        any_address=False,
        message=message,
        users=str(server.users),
        artifacts=str(server.artifacts),
        certificate=str(server.certificate or ""),
        key=str(server.key or ""),
        forwarded_from=server.forwarded_from,
    )


def server_environment(server: Server, environ: Mapping[str, str]) -> dict[str, str]:
    """MLflow's own settings for `server`. Secrets are here, as everybody may read a command line."""
    hosts = ",".join(pattern for name in server.names for pattern in (name, f"{name}:*"))
    return environment(
        {**_POOL, **environ},
        with_driver(server.store),
        hosts,
        MLFLOW_AUTH_CONFIG_PATH=str(server.auth),
        MLFLOW_FLASK_SERVER_SECRET_KEY=_key(server.secret),
        MLFLOW_CRYPTO_KEK_PASSPHRASE=_key(server.passphrase),
        _MLFLOW_AUTH_ADMIN_BOOTSTRAPPED="true",
        _MLFLOW_SERVER_ARTIFACT_ROOT=_PROXIED,
        _MLFLOW_SERVER_ARTIFACT_DESTINATION=server.artifacts.as_uri(),
        _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
    )


def _key(file: Path) -> str:
    """A secret that `prepare` has made; UnusableFileError where it is none, as an empty one would let everybody in."""
    key = read_bytes(file, _MAX_KEY_BYTES).decode("ascii", errors="replace")
    if re.fullmatch(r"[0-9a-f]{64}", key) is None:
        raise UnusableFileError(file, "it is no key of 64 hexadecimal digits")
    return key


def _problems(server: Server) -> Iterator[str]:
    if find_spec("flask_wtf") is None:
        yield (
            "MLflow's accounts need the Python package flask_wtf, which is not installed.\n"
            "Fix: pip install 'hpcexp[serve]'."
        )
    problem = _data_problem(server.data)
    if problem:
        yield problem
    if (not problem or sqlite_path(server.store) is None) and (problem := _store_problem(server.store)):
        yield problem
    yield from _certificate_problems(server.certificate, server.key)
    for proxy in server.forwarded_from:
        if problem := _proxy_problem(proxy):
            yield problem
    if problem := port_problem(server.host, server.port):
        yield problem


def _data_problem(data: Path) -> str | None:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in _places(data):
            if (problem := directory_problem(place)) is not None:
                return problem
        with TemporaryFile(dir=data), unserved(data):
            return None
    except InUseError as e:
        return str(e)
    except OSError as e:
        return (
            f"{data} cannot be written: {e.strerror}. The server keeps artifacts and accounts there.\n"
            "Fix: hpcexp serve DIR with a directory of the user that runs it."
        )


def _places(data: Path) -> Iterator[Path]:
    """The server's directory, and that of its artifacts where it is a link to another disk."""
    yield data
    artifacts = (data / ARTIFACTS).resolve()
    if artifacts.exists() and not artifacts.is_relative_to(data):
        yield artifacts


def _store_problem(store: str) -> str | None:
    problem = uri_problem(store)
    if problem:
        return problem.replace("tracking.uri=", "--store ")
    if store.startswith(("http://", "https://")):
        return (
            f"--store {without_password(store)} is a server, not a database.\n"
            "Fix: --store postgresql://user@host/database, or none for SQLite in DIR."
        )
    return connection_problem(store, "--store")


def _proxy_problem(address: str) -> str | None:
    try:
        ip_network(address)
    except ValueError:
        return (
            f"--forwarded-from {address} is no address or network.\n"
            "Fix: --forwarded-from 127.0.0.1, or the addresses of the proxy, with commas between them."
        )
    return None


def _certificate_problems(certificate: Path | None, key: Path | None) -> Iterator[str]:
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        yield "TLS takes a certificate and its key.\nFix: give both --tls-cert and --tls-key, or neither."
        return
    for option, file in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            file.read_bytes()
        except OSError as e:
            yield f"{option} {file} cannot be read: {e.strerror}.\nFix: a PEM file that this user may read."
            return
    try:
        # A key with a passphrase would be asked for at the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as e:
        why = getattr(e, "reason", None) or str(e)
        yield (
            f"--tls-cert {certificate} with --tls-key {key} cannot be used: {why}.\n"
            "Fix: a PEM certificate (with those above it) and the key it was made for, without a passphrase."
        )


def _auth_ini(server: Server) -> str:
    # configparser takes % for an interpolation.
    users = f"sqlite:///{server.users}".replace("%", "%%")
    return (
        "# Written by `hpcexp serve` at each start.\n[mlflow]\n"
        f"default_permission = {server.permission}\ndatabase_uri = {users}\nadmin_username = {server.admin}\n"
        f"authorization_function = {_AUTHORIZATION}\n"
    )
