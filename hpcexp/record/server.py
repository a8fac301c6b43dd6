"""MLflow as the server of a group: its files, what keeps it from starting, its command."""

from __future__ import annotations

import os
import secrets
import shlex
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from hpcexp.errors import ConfigError, InUseError
from hpcexp.masking import without_password
from hpcexp.record import worker
from hpcexp.record.store import create_sqlite
from hpcexp.record.ui import UI_ENVIRONMENT, port_problem
from hpcexp.record.uri import connection_problem, sqlite_path, uri_problem, with_driver
from hpcexp.rundir import held, write_atomic

PERMISSIONS = ("NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE")
"""What a user may do with an experiment that nobody has given or denied him."""

_ENVIRONMENT = {
    # Of 100 writers 29 to 68 get through with SQLAlchemy's own numbers, all with these.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "60",
    # Of MLflow's libraries about each other.
    "PYTHONWARNINGS": "ignore",
}
_NOT_FOR_THE_SERVER = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_REGISTRY_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"),
)
_CACHE_S = 60
"""For so long a password that was right is not hashed again: a call takes 20 ms instead of 387."""
_GRACE_S = 10
"""Open connections do not hold up the end for longer."""


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

    @property
    def artifacts(self) -> Path:
        return self.data / "mlartifacts"

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
    """Have the files that the server needs before it starts."""
    server.artifacts.mkdir(parents=True, exist_ok=True)
    if not server.secret.exists():
        write_atomic(server.secret, secrets.token_hex(32), mode=0o600)
    write_atomic(server.auth, _auth_ini(server), mode=0o600)
    if (path := sqlite_path(server.store)) is not None:
        create_sqlite(server.store, path, "mlflow-artifacts:/")


def server_command(server: Server) -> list[str]:
    """Command that serves until SIGTERM or Ctrl-C."""
    options = ["--timeout-graceful-shutdown", str(_GRACE_S), "--loop", "hpcexp.record.worker:event_loop"]
    if server.certificate and server.key:
        options += ["--ssl-certfile", str(server.certificate), "--ssl-keyfile", str(server.key)]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--serve-artifacts", "--artifacts-destination", server.artifacts.as_uri()),
        # One worker: several lose TCP_NODELAY and take 44 ms a request instead of 2.
        *("--host", server.host, "--port", str(server.port), "--workers", "1"),
        *("--uvicorn-opts", shlex.join(options)),
    ]


def server_environment(server: Server, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for `server_command` in the place of this process.

    The store's URI is here, as everybody may read a command line.
    """
    mine = {key: value for key, value in environ.items() if key not in _NOT_FOR_THE_SERVER}
    hosts = [pattern for name in server.names for pattern in (name, f"{name}:*")]
    return {
        **UI_ENVIRONMENT,
        **_ENVIRONMENT,
        **mine,
        worker.PARENT: str(os.getpid()),
        "MLFLOW_BACKEND_STORE_URI": with_driver(server.store),
        "MLFLOW_AUTH_CONFIG_PATH": str(server.auth),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": server.secret.read_text(),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        # Browsers send the address of the page with what they change. A proxy in front may speak https.
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"{s}://{host}" for s in ("http", "https") for host in hosts),
    }


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
    if problem := port_problem(server.host, server.port):
        yield problem


def _data_problem(data: Path) -> str | None:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=data), unserved(data):
            return None
    except InUseError as e:
        return str(e)
    except OSError as e:
        return (
            f"{data} cannot be written: {e.strerror}. The server keeps artifacts and accounts there.\n"
            "Fix: hpcexp serve DIR with a directory of the user that runs it."
        )


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
        f"auth_cache_ttl_seconds = {_CACHE_S}\n"
    )
