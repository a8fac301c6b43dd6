"""One process at a time, on whatever machine, at what is made in a database server.

The server itself keeps the others out, by a lock that ends with the connection of who has it, however that ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, text

from hpcexp.tracking.mlflow.uri import with_driver

_PATIENCE_S = 120


@contextmanager
def database_lock(uri: str, what: str, connect_args: Mapping[str, Any] | None = None) -> Iterator[Connection]:
    """Be alone at `what` in the database of `uri`, once whoever is there has left; a connection to it.

    SQLAlchemyError where it cannot be reached, or somebody stays for minutes.
    """
    # Without a transaction, which would be idle for as long as the tables take.
    engine = create_engine(
        with_driver(uri), poolclass=NullPool, connect_args=dict(connect_args or {}), isolation_level="AUTOCOMMIT"
    )
    try:
        with engine.connect() as connection:
            _lock(connection, f"hpcexp {what}")
            yield connection
    finally:
        engine.dispose()


def _lock(connection: Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET lock_timeout = '{_PATIENCE_S}s'"))
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
    elif connection.dialect.name == "mysql":
        # MySQL's locks are of the whole server.
        named = text("SELECT GET_LOCK(CONCAT(LEFT(DATABASE(), 40), :name), :wait_s)")
        if connection.scalar(named, {"name": f" {name}", "wait_s": _PATIENCE_S}) != 1:
            raise TimeoutError(f"another process has been at {name} for {_PATIENCE_S} s")
