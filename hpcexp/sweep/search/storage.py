"""Where an Optuna study is kept: a journal file, SQLite, or a database server."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from hpcexp.errors import RunError
from hpcexp.files.locks import held_within
from hpcexp.redaction import without_password
from hpcexp.sweep.search.journal_file import JournalLock, LineJournal, locked
from hpcexp.sweep.search.study_file import REPLAY_ERRORS, check_journal
from hpcexp.tracking.mlflow.database_lock import database_lock
from hpcexp.tracking.mlflow.store import problem_of
from hpcexp.tracking.mlflow.uri import sqlite_path, with_driver

_SQLITE = {"timeout": 30}
"""Seconds to wait while another process writes."""
_POSTGRES = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq: a machine that is gone must not hold a call for the quarter of an hour of TCP's own patience."""


def storage_uri(configured: str | None, project: Path) -> str | None:
    """`search.storage`, a relative SQLite path being one of the project's; None for a journal file."""
    path = sqlite_path(configured) if configured else None
    return configured if path is None else f"sqlite:///{project.absolute() / path}"


def open_storage(uri: str | None, journal: Path) -> BaseStorage:
    """The storage at `uri`, or in the file `journal`, made where there is none. RunError where it cannot be used."""
    with storage_alone(uri, journal) as storage:
        return storage


@contextmanager
def storage_alone(uri: str | None, journal: Path) -> Iterator[BaseStorage]:
    """`open_storage`, and no other process opens it meanwhile: whoever is first decides what a study is about."""
    storage: BaseStorage | None = None
    try:
        with _explained(uri, journal), _alone(uri, journal):
            storage = _storage(uri, journal)
            yield storage
    except BaseException:
        if storage is not None:
            close_storage(storage)
        raise


def close_storage(storage: BaseStorage) -> None:
    """Close its connections."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _alone(uri: str | None, journal: Path) -> AbstractContextManager[object]:
    if uri is None:
        journal.parent.mkdir(parents=True, exist_ok=True)
        return locked(JournalLock(journal.absolute().with_name(f"{journal.name}.begin")))
    path = sqlite_path(uri)
    if path is None:
        return database_lock(uri, "studies", _arguments(uri))
    return held_within(math.inf, path.with_name(f".{path.name}.lock"), f"{path} is being made by")


def _storage(uri: str | None, journal: Path) -> BaseStorage:
    """Killed anywhere in it, the next one makes the tables that are missing."""
    if uri is None:
        check_journal(journal)
        try:
            return JournalStorage(LineJournal(journal.absolute()))
        except REPLAY_ERRORS as e:
            raise ValueError(f"its lines do not fit together ({type(e).__name__}: {e})") from e
    path = sqlite_path(uri)
    if path is None:
        arguments = {"pool_pre_ping": True, "connect_args": _arguments(uri)}
        return RDBStorage(_as_template(with_driver(uri)), engine_kwargs=arguments)
    # In WAL mode, which stays in the file, one can read while another writes.
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    storage = RDBStorage(_as_template(uri), engine_kwargs={"connect_args": _SQLITE})
    # Python begins a transaction at its first write only: what Optuna has read for that may be another one's past.
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def _arguments(uri: str) -> dict[str, int]:
    return _POSTGRES if uri.startswith("postgresql") else {}


def _as_template(uri: str) -> str:
    """Optuna puts its schema's version where braces are, of which a password may have some."""
    return uri.replace("{", "{{").replace("}", "}}")


_JOURNAL_FIX = "let hpcexp write there, or search.storage=sqlite:///study.db elsewhere."
_SQLITE_FIX = "let hpcexp write there, or leave search.storage out: the study is then a file in the sweep's directory."
_SERVER_FIX = (
    "start the database, and see that its name, user and password are right; "
    "or leave search.storage out: the study is then a file in the sweep's directory."
)


@contextmanager
def _explained(uri: str | None, journal: Path) -> Iterator[None]:
    """Errors of a storage for people."""
    if uri is None:
        what, fix = f"The study's journal {journal}", _JOURNAL_FIX
    else:
        what = f"The study's storage {without_password(uri)}"
        fix = _SERVER_FIX if sqlite_path(uri) is None else _SQLITE_FIX
    try:
        yield
    except ValueError as e:
        raise RunError(f"{what} is damaged: {e}.\nFix: take it away; the sweep's runs stay.") from e
    except RuntimeError as e:  # Optuna's word on a schema of another version
        raise RunError(f"{what}: {e}") from e
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError) as e:
        raise RunError(f"{what} cannot be used: {problem_of(e, '').removeprefix(': ')}.\nFix: {fix}") from e
