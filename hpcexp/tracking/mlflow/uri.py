"""Which MLflow store a run goes to, or database a study, and whether that can be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

from hpcexp.errors import listed, suggest
from hpcexp.redaction import masked_text, without_password

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Scheme → port of a server whose address has none."""
_SCHEMES = (*PORTS, "sqlite")
_EXAMPLES = "tracking.uri=sqlite:////data/mlflow.db, or tracking.uri=http://host:5000"
_DRIVERS = {
    "postgresql": {"": "psycopg", "psycopg": "psycopg", "psycopg2": "psycopg2"},
    "mysql": {"": "MySQLdb", "mysqldb": "MySQLdb", "pymysql": "pymysql"},
}
"""Database → driver that a URI names → its Python module. `postgresql://` means psycopg 3, as in SQLAlchemy 2.1."""
_PACKAGES = {"psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}
"""Module → what pip installs it by, where that is another name."""

_CONNECT_S = 5
_MAY_CREATE = "SELECT has_schema_privilege(current_schema(), 'CREATE')"


def resolve_uri(configured: str | None, root: Path, environ: Mapping[str, str]) -> str:
    """`tracking.uri`, else `MLFLOW_TRACKING_URI`, else SQLite in `root`. A relative SQLite path becomes absolute."""
    uri = configured or environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute() / 'mlflow.db'}"
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path.absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    head, separator, rest = uri.partition(":///")
    return Path(rest) if separator and rest and head.partition("+")[0] == "sqlite" else None


def uri_problem(uri: str) -> str | None:
    """Why MLflow could not use `uri`, and the way out; None where it can."""
    shown = without_password(uri)
    scheme, separator, _ = uri.partition("://")
    dialect = scheme.partition("+")[0]
    if not separator or dialect == "file":
        return (
            f"tracking.uri={shown} names a directory. MLflow 3 refuses to record into plain files.\nFix: {_EXAMPLES}."
        )
    if dialect not in _SCHEMES:
        hint = suggest(dialect, _SCHEMES)
        return (
            f"tracking.uri={shown} has the unknown scheme '{dialect}'{'; ' + hint if hint else '.'}\n"
            f"MLflow stores have one of: {listed(_SCHEMES)}.\nFix: {_EXAMPLES}."
        )
    if dialect == "sqlite":
        return _sqlite_problem(uri, "tracking.uri", "mlflow.db")
    if not _host_and_port(uri):
        return (
            f"tracking.uri={shown} names no host, or a port that is no number.\nFix: tracking.uri={scheme}://host:5000."
        )
    return _driver_problem(uri, "tracking.uri") if dialect == "postgresql" else None


def database_problem(uri: str, setting: str) -> str | None:
    """Why the value of `setting` is no database that SQLAlchemy could use, and the way out; None where it can."""
    scheme, separator, _ = uri.partition("://")
    dialect = scheme.partition("+")[0]
    if not separator or dialect not in ("sqlite", *_DRIVERS):
        return (
            f"{setting}={without_password(uri)} is no database.\n"
            f"Fix: {setting}=sqlite:///study.db, or {setting}=postgresql://user@host/database."
        )
    if dialect == "sqlite":
        return _sqlite_problem(uri, setting, "study.db")
    return _driver_problem(uri, setting)


def with_driver(uri: str) -> str:
    """`uri` as every version of SQLAlchemy understands it: `postgresql+psycopg://` for `postgresql://`."""
    return uri.replace("postgresql://", "postgresql+psycopg://", 1) if uri.startswith("postgresql://") else uri


def unreachable(uri: str, timeout_s: float = 1.0) -> str | None:
    """Why nothing answers at the server of `uri` within `timeout_s`; None where it does or there is no server."""
    address = _host_and_port(uri)
    if sqlite_path(uri) is not None or address is None:
        return None
    answers: list[str | None] = []
    # A thread, as looking up a name has no time limit of its own.
    asking = threading.Thread(target=lambda: answers.append(_connect_error(address, timeout_s)), daemon=True)
    asking.start()
    asking.join(timeout_s)
    error = answers[0] if answers else f"not within {timeout_s:g} s"
    if error is None:
        return None
    return (
        f"tracking.uri={without_password(uri)} does not answer ({error}).\n"
        "The run continues and its directory holds everything; `hpcexp sync` syncs it later.\n"
        "Fix: start the server, or tracking.uri=null for SQLite beside the runs, or tracking.enabled=false."
    )


def connection_problem(uri: str, setting: str) -> str | None:
    """Why the database of `setting` could not be used to make tables in, and the way out; None where it can."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    is_sqlite = sqlite_path(uri) is not None
    engine = create_engine(with_driver(uri), connect_args={} if is_sqlite else {"connect_timeout": _CONNECT_S})
    try:
        with engine.connect() as connection:
            if is_sqlite:
                connection.execute(text("BEGIN IMMEDIATE"))
            elif engine.dialect.name == "postgresql" and not connection.scalar(text(_MAY_CREATE)):
                return (
                    f"{setting} {without_password(uri)}: this user may make no tables there.\n"
                    "Fix: ALTER DATABASE … OWNER TO this user, or GRANT CREATE ON SCHEMA public."
                )
    except SQLAlchemyError as e:
        why = " ".join(str(getattr(e, "orig", None) or e).split())
        fix = "a directory and a file that this user may write" if is_sqlite else "start it, or mend the address"
        return f"{setting} {without_password(uri)} cannot be used: {masked_text(why)}\nFix: {fix}."
    finally:
        engine.dispose()
    return None


def with_password(uri: str, environ: Mapping[str, str]) -> str:
    """A server's `http://user@host` with that user's password in `MLFLOW_TRACKING_PASSWORD`; any other URI as it is."""
    scheme, separator, rest = uri.partition("://")
    user, at, host = rest.rpartition("@")
    password = environ.get("MLFLOW_TRACKING_PASSWORD")
    if scheme not in ("http", "https") or not at or ":" in user or not password:
        return uri
    return f"{scheme}{separator}{user}:{quote(password, safe='')}@{host}"


def _sqlite_problem(uri: str, setting: str, file: str) -> str | None:
    path = sqlite_path(uri)
    if path is None:
        return f"{setting}={uri} names no database file.\nFix: {setting}=sqlite:////data/{file}."
    if path.is_dir():
        return f"{setting}={uri} is a directory, not a database file.\nFix: {setting}=sqlite:///{path}/{file}."
    return None


def _driver_problem(uri: str, setting: str) -> str | None:
    dialect, _, driver = uri.partition("://")[0].partition("+")
    module = _DRIVERS[dialect].get(driver, driver)
    if find_spec(module) is not None:
        return None
    return (
        f"{setting}={without_password(uri)} needs the Python package {module}, which is not installed.\n"
        f"Fix: pip install {_PACKAGES.get(module, module)}."
    )


def _host_and_port(uri: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def _connect_error(address: tuple[str, int], timeout_s: float) -> str | None:
    try:
        socket.create_connection(address, timeout_s).close()
    except OSError as e:
        return e.strerror or str(e) or type(e).__name__
    return None
