"""Databases of MLflow: dumps of PostgreSQL, and paths that move."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from hpcexp.errors import RunError
from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.uri import with_driver

if TYPE_CHECKING:
    from sqlalchemy import Engine

_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables that say where artifacts lie."""


def is_postgres(uri: str) -> bool:
    """Whether the URI names a database of PostgreSQL."""
    return uri.partition("://")[0].partition("+")[0] == "postgresql"


def dump(uri: str, target: Path) -> None:
    """The database as of one moment, in pg_dump's own format."""
    _run("pg_dump", uri, "--format=custom", "--no-owner", "--no-privileges", f"--file={target}")


def check_empty(uri: str) -> None:
    """RunError where the database cannot be reached, or has tables."""
    from sqlalchemy import inspect

    with _engine(uri) as engine:
        tables = inspect(engine).get_table_names()
    if tables:
        raise RunError(
            f"{without_password(uri)} has {len(tables)} tables already.\n"
            "Fix: an empty database by --store, or --force to replace what is there."
        )


def load(dump_file: Path, uri: str) -> None:
    """Put a dump into the database, in place of the tables that it has; all of it or nothing."""
    options = ["--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error"]
    _run("pg_restore", uri, *options, f"--dbname={_database(uri)}", str(dump_file))


def move_locations(uri: str, old: str, new: str) -> None:
    """Let MLflow's tables say `new…` where they say that artifacts lie in `old…`."""
    from sqlalchemy import text

    values = {"old": old, "new": new, "length": len(old), "rest": len(old) + 1}
    with _engine(uri) as engine, engine.begin() as connection:
        for table, column in _LOCATIONS:
            statement = (
                f"UPDATE {table} SET {column} = CAST(:new AS VARCHAR(1000)) || substr({column}, :rest)"  # noqa: S608
                f" WHERE substr({column}, 1, :length) = :old"
            )
            connection.execute(text(statement), values)


@contextmanager
def _engine(uri: str) -> Iterator[Engine]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    engine = create_engine(with_driver(uri))
    try:
        yield engine
    except SQLAlchemyError as e:
        why = " ".join(str(getattr(e, "orig", None) or e).split())
        raise RunError(f"{without_password(uri)} cannot be used: {why}\nFix: start it, or another --store.") from e
    finally:
        engine.dispose()


def _run(program: str, uri: str, *options: str) -> None:
    """One of PostgreSQL's programs, whose command line everybody may read: the address is in its environment."""
    found = shutil.which(program)
    if found is None:
        raise RunError(f"{program} is not installed; it comes with PostgreSQL.\nFix: apt-get install postgresql-client")
    parts = urlsplit(uri)
    address = {
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port or 5432),
        "PGUSER": parts.username and unquote(parts.username),
        "PGPASSWORD": parts.password and unquote(parts.password),
        "PGDATABASE": _database(uri),
    }
    known = {key: value for key, value in address.items() if value}
    command = [found, "--no-password", *options]
    done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise RunError(f"{program} of {without_password(uri)}: {why}\nFix: start the database, or mend --store.")


def _database(uri: str) -> str:
    return unquote(urlsplit(uri).path.lstrip("/"))
