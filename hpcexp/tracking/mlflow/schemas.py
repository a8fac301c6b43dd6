"""The databases that MLflow makes. Importing this module does not import it; making or upgrading one does."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcexp.errors import RunError
from hpcexp.files.databases import Schema, have_database, is_made
from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.uri import sqlite_path, with_driver

if TYPE_CHECKING:
    from sqlalchemy import Connection

_FORMER_TABLES = tuple(
    f"{what}_permissions"
    for what in (
        *("experiment", "registered_model", "scorer", "workspace"),
        *("gateway_secret", "gateway_endpoint", "gateway_model_definition"),
    )
)
"""Tables of accounts that MLflow makes, and no longer reads."""


def have_sqlite(path: Path, artifact_uri: str) -> None:
    """Have MLflow's database at `path`. `artifact_uri`: as of `mlflow_schema`."""
    have_database(path, mlflow_schema(artifact_uri))


def have_store(uri: str, artifact_uri: str) -> None:
    """Have the tables of MLflow in the database of `uri`; a server has its own. RunError where that cannot be."""
    if (path := sqlite_path(uri)) is not None:
        have_sqlite(path, artifact_uri)
    elif not uri.startswith(("http://", "https://")):
        _have_tables(uri, artifact_uri)


def is_sqlite_made(path: Path) -> bool:
    """Whether there is one, of whatever version."""
    return is_made(path, mlflow_schema(""))


def mlflow_schema(artifact_uri: str) -> Schema:
    """That of a store of runs. `artifact_uri`: where artifacts of experiments lie that do not say that."""
    return Schema(
        owner="MLflow",
        content="experiments",
        version="alembic_version",
        head=_head,
        tables=_tables,
        make=partial(_make, artifact_uri=artifact_uri),
        upgrade=_upgrade,
    )


def accounts_schema(make: Callable[[Path], object]) -> Schema:
    """That of a server's accounts, the first of which `make` makes."""
    return Schema(
        owner="MLflow",
        content="users",
        version="alembic_version_auth",
        head=_accounts_head,
        tables=_accounts_tables,
        make=make,
        upgrade=_upgrade_accounts,
    )


@contextmanager
def accounts_at(users: Path) -> Iterator[Any]:
    """MLflow's store of accounts in a file, whose tables are made or brought up to date in it."""
    with warnings.catch_warnings(action="ignore"):  # of MLflow's libraries about each other
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore()
        store.init_db(f"sqlite:///{users}")  # type: ignore[no-untyped-call]
    try:
        yield store
    finally:
        store.engine.dispose()


def have_accounts(users: Path) -> None:
    """Have accounts that are there in the form of the installed MLflow."""
    have_database(users, accounts_schema(_upgrade_accounts))


def _upgrade_accounts(users: Path) -> None:
    with accounts_at(users):
        pass


def _accounts_head() -> str:
    with warnings.catch_warnings(action="ignore"):  # as above
        from alembic.script import ScriptDirectory
        from mlflow.server.auth.db.utils import _get_alembic_config

        return str(ScriptDirectory.from_config(_get_alembic_config("")).get_current_head())


def _accounts_tables() -> Collection[str]:
    with warnings.catch_warnings(action="ignore"):  # as above
        from mlflow.server.auth.db.models import Base

    # Those of former times are made and left.
    return {*Base.metadata.tables, *_FORMER_TABLES}


def _head() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def _tables() -> Collection[str]:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.dbmodels.initial_models import Base as First

    return {*Base.metadata.tables, *First.metadata.tables}


def _make(path: Path, artifact_uri: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # WAL lets the UI read while runs write. It stays in the file.
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    SqlAlchemyStore(f"sqlite:///{path}", artifact_uri).engine.dispose()  # type: ignore[no-untyped-call]


def _upgrade(path: Path) -> None:
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")  # type: ignore[no-untyped-call]
    try:
        _upgrade_db(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()


def _have_tables(uri: str, artifact_uri: str) -> None:
    """Those of a database server, made by one process at a time. PostgreSQL takes back what was left half made."""
    from hpcexp.tracking.mlflow.database_lock import database_lock

    with database_lock(uri, "MLflow's tables") as connection:
        if _is_begun(connection):
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        try:
            SqlAlchemyStore(with_driver(uri), artifact_uri).engine.dispose()  # type: ignore[no-untyped-call]
        except Exception as e:
            if "already exists" not in str(e):
                raise
            reason = next(line for line in str(e).splitlines() if "already exists" in line)
            raise RunError(
                f"MLflow's tables cannot be made in {without_password(uri)}, where nothing is recorded: {reason}\n"
                "Some were left there by a start that was killed, or are somebody else's.\n"
                "Fix: an empty database, by DROP DATABASE and CREATE DATABASE."
            ) from e


def _is_begun(connection: Connection) -> bool:
    """Whether there is an experiment: the first one is made last."""
    from sqlalchemy import inspect, text

    return (
        inspect(connection).has_table("experiments") and connection.scalar(text("SELECT count(*) FROM experiments")) > 0
    )
