"""SQLite databases that are whole or not there: made aside, looked at, and only then given their name.

The libraries that make the tables of such a file do so in hundreds of steps, and cannot continue what a process that
was killed has left. So nobody finds a file that is being made. One that was left half made in former times is set
aside, and one of an older version is brought up to date in a copy.

A database is looked at by stat(2) and through SQLite, and never opened as a file: POSIX frees all locks that a process
has on a file as soon as it closes any descriptor of it, so that other processes could write between the writes of a
connection of this one (https://sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hpcexp.errors import InUseError, RunError
from hpcexp.files.locks import held, held_within
from hpcexp.files.untrusted import UnusableFileError, holes_problem, kind_problem

_BESIDE = ("-wal", "-shm", "-journal")


@dataclass(frozen=True)
class Schema:
    """What a database has in it, and the library that makes it so."""

    owner: str
    """The library's name, for people."""
    content: str
    """A table with rows in every whole one, of which none is lost."""
    version: str
    """The table that says which version the tables are of."""
    head: Callable[[], str]
    """That version as the installed library has it."""
    tables: Callable[[], Collection[str]]
    """Names of all its tables."""
    make: Callable[[Path], object]
    """Make everything in a file that is not there."""
    upgrade: Callable[[Path], object]
    """Bring the tables of a file up to date."""
    busy_s: float = 20.0
    """How long another process may write meanwhile."""


@dataclass(frozen=True)
class _State:
    tables: frozenset[str]
    has_content: bool
    version: str | None


def is_made(path: Path, schema: Schema) -> bool:
    """Whether there is such a database, of whatever version. Imports nothing of the library."""
    return path.exists() and _is_made(_state(path, schema))


def have_database(path: Path, schema: Schema) -> None:
    """Have the database at `path`, of the installed version of its library; one process at a time makes it.

    RunError where there is something else.
    """
    path = _checked(path)
    lock, what = path.with_name(f".{path.name}.lock"), f"{path} is being made by"
    if is_current(path, schema):
        if any(file.exists() for file in _asides(path)):
            with suppress(InUseError), held(lock, what):
                _clear(path)
        return
    with held_within(math.inf, lock, what):
        _clear(path)
        if is_current(path, schema):
            return
        before = _state(path, schema) if path.exists() else _State(frozenset(), has_content=False, version=None)
        if before.has_content:
            _upgrade(path, schema)
            return
        if foreign := [name for name in sorted(before.tables) if not _is_own(name, schema)]:
            raise RunError(
                f"{path} is no database of {schema.owner}'s: it has a table {foreign[0]}.\n"
                "Fix: another file, or move this one away."
            )
        if before.tables:
            _set_aside(path, schema)
        _make(path, schema)


def _checked(path: Path) -> Path:
    """Where the file itself is: a link to another disk stays one.

    RunError where that is no regular file, or an empty one to which a link leads: it would be replaced, and whoever
    placed the link may have meant it to be.
    """
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
    except FileNotFoundError:
        return real
    if (problem := kind_problem(status.st_mode)) is not None:
        raise RunError(f"{path} is no database: {problem} ({real}).\nFix: another file, or move this one away.")
    if not status.st_size and path.is_symlink():
        raise RunError(
            f"{path} leads to {real}, which is empty and no database.\nFix: remove that file, or the link to it."
        )
    return real


@contextmanager
def reading(path: Path, timeout_s: float = 20.0) -> Iterator[sqlite3.Connection]:
    """A connection to a database that somebody else may have made, which writes nothing.

    FileNotFoundError where there is none; UnusableFileError where it is anything but a regular file, or mostly holes:
    SQLite would wait for the writer of a FIFO, and reads a file to its end.
    """
    status = path.stat()
    if (problem := kind_problem(status.st_mode) or holes_problem(status)) is not None:
        raise UnusableFileError(path, problem)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout_s)) as connection:
        yield connection


def is_current(path: Path, schema: Schema) -> bool:
    """Whether the database is there and of the installed version."""
    if not path.exists():
        return False
    state = _state(path, schema)
    return _is_made(state) and state.version == schema.head()


def _is_made(state: _State) -> bool:
    return state.has_content and state.version is not None


def _is_own(table: str, schema: Schema) -> bool:
    return table in (*schema.tables(), schema.version) or table.startswith("_alembic_tmp_")


def _make(path: Path, schema: Schema) -> None:
    aside, _ = _asides(path)
    try:
        schema.make(aside)
        with closing(_connect(aside, schema)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # nothing of it is in a log beside it
        if not is_current(aside, schema):
            raise RunError(f"{schema.owner} has not made all of {path}.\nFix: the same command again.")
        _sync(aside)
        _publish(aside, path)
    finally:
        _clear(path)


def _publish(aside: Path, path: Path) -> None:
    """Give the file its name, unless another machine was first."""
    if path.exists():  # and has no table
        os.replace(aside, path)
    else:
        # The log of a database that somebody has removed would be taken for one of this one.
        for end in _BESIDE:
            Path(f"{path}{end}").unlink(missing_ok=True)
        try:
            os.link(aside, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(aside, path)
    _sync(path.parent)


def _set_aside(path: Path, schema: Schema) -> None:
    """Let a file that was left half made have another name."""
    with closing(_connect(path, schema)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")  # locked while somebody is at it; else all is in the one file
    number = 1
    while (other := path.with_name(f"{path.name}.half-{number}")).exists():
        number += 1
    path.rename(other)
    print(
        f"{path} was left half made by a process that was killed, with nothing recorded in it. "
        f"It is {other.name} now, and is made anew.",
        file=sys.stderr,
        flush=True,
    )


def _upgrade(path: Path, schema: Schema) -> None:
    """Bring a database up to date: a copy first, whose content then takes the place of the old in one transaction."""
    aside, kept = _asides(path)
    try:
        with closing(_connect(path, schema)) as connection:
            _keep_others_out(connection, path, schema)
            before = _state_in(connection, schema)
            with closing(_connect(kept, schema)) as copy:
                connection.backup(copy)
            shutil.copyfile(kept, aside)
            try:
                schema.upgrade(aside)
            except Exception as e:
                first = str(e).partition("\n")[0]
                raise RunError(
                    f"{path} is of another version of {schema.owner} ({before.version}), and cannot be brought up to "
                    f"date: {first}\nIt is as it was.\nFix: pip install -U {schema.owner.lower()}, or another file."
                ) from e
            # From the moment on that it is changed, the old one is there for whoever goes back to the old version.
            _sync(kept)
            name = path.with_name(f"{path.name}.before-{schema.head()}")
            os.replace(kept, name)
            with closing(_connect(aside, schema)) as upgraded:
                upgraded.backup(connection)
    finally:
        _clear(path)
    print(f"{path} was brought up to date for {schema.owner}. As it was before it is {name.name}.", file=sys.stderr)


def _keep_others_out(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Hold the file's lock until the connection is closed, also between transactions."""
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except sqlite3.OperationalError as e:
        raise RunError(
            f"{path} is of another version of {schema.owner}, and other processes have it open ({e}).\n"
            "Fix: end them (runs, hpcexp ui), then the same command again."
        ) from e


def _state(path: Path, schema: Schema) -> _State:
    """The content of the file. RunError where that is no database, or a damaged one."""
    with closing(_connect(path, schema)) as connection:
        return _state_in(connection, schema)


def _state_in(connection: sqlite3.Connection, schema: Schema) -> _State:
    try:
        named = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = frozenset(name for (name,) in named if not name.startswith("sqlite_"))
        content, version = (
            connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone() if table in tables else None  # noqa: S608
            for table in (schema.content, schema.version)
        )
    except sqlite3.OperationalError:
        raise  # locked, or a disk that fails: it may be well later
    except sqlite3.DatabaseError as e:
        [(_, _, file)] = connection.execute("PRAGMA database_list").fetchall()
        raise RunError(f"{file} is damaged, or no SQLite database: {e}.\nFix: restore it, or move it away.") from e
    return _State(tables, content is not None, str(version[0]) if version else None)


def _connect(path: Path, schema: Schema) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=schema.busy_s, isolation_level=None)


def _asides(path: Path) -> tuple[Path, Path]:
    """Names for a new database and for the old one while this machine makes one; its lock protects them."""
    host = socket.gethostname()
    return path.with_name(f".{path.name}.new-{host}"), path.with_name(f".{path.name}.old-{host}")


def _clear(path: Path) -> None:
    """Remove what a process that was killed has left there."""
    for file in _asides(path):
        _remove(file)


def _remove(file: Path) -> None:
    for end in ("", *_BESIDE):
        Path(f"{file}{end}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
