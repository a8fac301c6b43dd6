"""Databases that are made in steps: whoever is killed at whichever step leaves nothing that breaks those after it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from killing import is_killed_at
from racers import Racers
from record_support import finish, make_run, query

from hpcexp.errors import RunError
from hpcexp.files.databases import Schema, have_database, is_current, reading
from hpcexp.tracking.mlflow.schemas import mlflow_schema
from hpcexp.tracking.server.accounts import Accounts
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""

PASSWORD = "correct horse battery"
OLDER = "451aebb31d03"
"""A revision of MLflow's tables, of 2020."""


def make(path: Path) -> None:
    """As MLflow does, a statement after the other, each of which is on disk at once."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE version (version_num)")
        connection.execute("CREATE TABLE things (name)")
        connection.execute("INSERT INTO version VALUES ('1')")
        connection.execute("INSERT INTO things VALUES ('first')")
    upgrade(path)


def upgrade(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE things ADD COLUMN size")
        connection.execute("CREATE TABLE more (name)")
        connection.execute("UPDATE version SET version_num = '2'")


def schema() -> Schema:
    return Schema("Things", "things", "version", lambda: "2", lambda: ("things", "more"), make, upgrade)


def nothing(path: Path) -> None:
    """There is no file yet."""


def an_empty_file(path: Path) -> None:
    path.touch()


def a_removed_database(path: Path) -> None:
    """Whose log was left, which SQLite would take for the new one's."""
    make(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO more VALUES ('old')")
        connection.commit()
        shutil.copy(f"{path}-wal", path.with_name("kept"))
    path.unlink()
    path.with_name("kept").rename(f"{path}-wal")


def a_half_made_one(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE version (version_num)")


def an_old_one(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE version (version_num)")
        connection.execute("CREATE TABLE things (name)")
        connection.execute("INSERT INTO version VALUES ('1')")
        connection.executemany("INSERT INTO things VALUES (?)", [("ours",), ("first",)])


def kill_at_every_step(_: int, __: object, place: Path, before: Callable[[Path], object]) -> int:
    """How many steps there were. Of the database that was there nothing is lost at any of them."""
    step = 0
    while True:
        step += 1
        path = place / f"{step}" / "things.db"
        path.parent.mkdir()
        before(path)
        rows = query(path, "SELECT name FROM things") if before is an_old_one else [("first",)]
        was_killed = is_killed_at(step, lambda path=path: have_database(path, schema()))
        if before is an_old_one:
            assert rows == query(path, "SELECT name FROM things")
        have_database(path, schema())
        assert is_current(path, schema())
        assert rows == query(path, "SELECT name FROM things")
        assert [] == query(path, "SELECT * FROM more")
        left = {file.name for file in path.parent.iterdir()} - {"things.db", ".things.db.lock"}
        assert {a_half_made_one: {"things.db.half-1"}, an_old_one: {"things.db.before-2"}}.get(before, set()) == left
        if not was_killed:
            return step


@pytest.mark.parametrize("before", [nothing, an_empty_file, a_removed_database, a_half_made_one, an_old_one])
def test_a_maker_that_is_killed_at_any_step_hinders_nobody(
    tmp_path: Path, killer: Racers, before: Callable[[Path], object]
) -> None:
    """Whatever there was: the next one makes it, or brings it up to date, and leaves nothing else lying about."""
    [num_steps] = killer.run(kill_at_every_step, tmp_path, before)
    assert num_steps > 15


def have_one(me: int, start: Callable[[], object], place: Path) -> list[str]:
    def made(path: Path) -> None:
        makers.append(path.name)
        make(path)

    makers: list[str] = []
    for number in range(100):
        start()
        have_database(place / f"{number}.db", replace(schema(), make=made))
        assert is_current(place / f"{number}.db", schema())
    return makers


def test_of_two_makers_one_makes_it_and_the_other_uses_it(tmp_path: Path, racers: Racers) -> None:
    """At one moment, a hundred times."""
    one, other = racers.run(have_one, tmp_path)
    assert 100 == len(one) + len(other)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """And a file that is no database; both are named."""
    path = tmp_path / "things.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    with pytest.raises(RunError, match=r"recipes(.|\n)*Fix:"):
        have_database(path, schema())
    assert [] == query(path, "SELECT * FROM recipes")
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match=r"things.db is damaged, or no SQLite database(.|\n)*Fix:"):
        have_database(path, schema())


def test_one_that_is_in_use_is_not_brought_up_to_date(tmp_path: Path) -> None:
    """What its users write would be lost."""
    path = tmp_path / "things.db"
    an_old_one(path)
    with closing(sqlite3.connect(path)) as user:
        user.execute("SELECT * FROM things").fetchall()
        with pytest.raises(RunError, match="other processes have it open"):
            have_database(path, replace(schema(), busy_s=0.1))
        with user:
            user.execute("INSERT INTO things VALUES ('late')")
    have_database(path, schema())
    assert [("ours",), ("first",), ("late",)] == query(path, "SELECT name FROM things")


def test_one_of_a_newer_library_is_left_as_it_is(tmp_path: Path) -> None:
    """With the way out."""
    path = tmp_path / "mlflow.db"
    have_database(path, mlflow_schema("file:///artifacts"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(RunError, match=r"of another version of MLflow(.|\n)*ffffffffffff(.|\n)*Fix: pip install"):
        have_database(path, mlflow_schema("file:///artifacts"))
    assert [("ffffffffffff",)] == query(path, "SELECT version_num FROM alembic_version")
    assert {"mlflow.db", ".mlflow.db.lock"} == {file.name for file in tmp_path.iterdir()}


def test_whatever_mlflow_leaves_half_made_is_recognised(tmp_path: Path) -> None:
    """At every twentieth of the statements by which it makes its tables."""
    import sqlalchemy

    states: list[Path] = []
    num_statements = 0
    whole = tmp_path / "mlflow.db"

    def kept(*_: object) -> None:
        nonlocal num_statements
        num_statements += 1
        if num_statements % 20 == 0:
            states.append(tmp_path / f"{num_statements}.db")
            with closing(sqlite3.connect(whole)) as now, closing(sqlite3.connect(states[-1])) as copy:
                now.backup(copy)

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", kept)
    try:
        mlflow_schema("file:///artifacts").make(whole)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", kept)
    half = [path for path in states if not is_current(path, mlflow_schema(""))]
    assert len(half) > 20
    for path in half:
        has_tables = bool(query(path, "SELECT name FROM sqlite_master"))
        have_database(path, replace(mlflow_schema(""), make=lambda aside: shutil.copy(whole, aside)))
        assert is_current(path, mlflow_schema(""))
        assert has_tables == path.with_name(f"{path.name}.half-1").exists()


def sync_and_die(_: int, __: object, run: Path) -> list[bool]:
    """Syncs that are killed while MLflow's tables are made; whether they were."""
    return [is_killed_at(step, lambda: sync(run)) for step in (30, 700, 1400)]


def test_what_was_killed_over_making_the_store_is_synced_once(
    tmp_path: Path, killer: Racers, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where the first was of an hpcexp that made it in its place."""
    database = tmp_path / "mlflow.db"
    run = make_run(tmp_path, f"sqlite:///{database}", steps=3)
    finish(run)
    assert [True] * 3 == killer.run(sync_and_die, run.path)[0]
    assert not database.exists()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id)")
    assert sync(run.path) is None
    assert "mlflow.db was left half made" in capfd.readouterr().err
    assert sync(run.path) is None
    assert [("lr=0.01",)] == query(database, "SELECT name FROM runs")
    assert [(3,)] == query(database, "SELECT count(*) FROM metrics WHERE key = 'train/loss'")
    left = {file.name for file in tmp_path.iterdir() if "mlflow.db" in file.name}
    assert {"mlflow.db", "mlflow.db.half-1", ".mlflow.db.lock"} == left - {"mlflow.db-wal", "mlflow.db-shm"}


def test_an_older_store_is_brought_up_to_date_with_all_its_runs(tmp_path: Path) -> None:
    """As it was before is kept for who goes back to the older MLflow."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine_with_retry
    from mlflow.store.tracking.dbmodels.initial_models import Base

    database = tmp_path / "mlflow.db"
    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{database}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, OLDER)
    engine.dispose()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO experiments (experiment_id, name) VALUES (7, 'ours')")
        connection.execute(
            "INSERT INTO runs (run_uuid, name, experiment_id, status, lifecycle_stage) VALUES "
            "('abc', 'first', 7, 'FINISHED', 'active')"
        )
    run = make_run(tmp_path, f"sqlite:///{database}", steps=3)
    finish(run)
    assert sync(run.path) is None
    assert [("first",), ("lr=0.01",)] == query(database, "SELECT name FROM runs ORDER BY name")
    [before] = tmp_path.glob("mlflow.db.before-*")
    assert [(OLDER,)] == query(before, "SELECT version_num FROM alembic_version")
    assert [("first",)] == query(before, "SELECT name FROM runs")


def kill_over_accounts(_: int, __: object, place: Path) -> int:
    """How many first starts of a server were killed. None of them leaves accounts without an administrator."""
    for num_killed, step in enumerate(range(1, 1000, 37)):
        users = place / f"{step}.db"
        was_killed = is_killed_at(step, lambda users=users: Accounts(users).set_admin("admin", PASSWORD))
        assert not users.exists() or Accounts(users).has("admin")
        Accounts(users).set_admin("admin", PASSWORD)
        assert [("admin", 1)] == query(users, "SELECT username, is_admin FROM users")
        if not was_killed:
            return num_killed
    raise AssertionError


def test_a_first_start_that_is_killed_leaves_no_half_accounts(tmp_path: Path, killer: Racers) -> None:
    """Nor the next one without them. What was left in former times is set aside."""
    [num_killed] = killer.run(kill_over_accounts, tmp_path)
    assert num_killed > 3
    half = tmp_path / "users.db"
    with closing(sqlite3.connect(half)) as connection:
        connection.execute("CREATE TABLE users (id, username, password_hash)")
    Accounts(half).set_admin("admin", PASSWORD)
    assert Accounts(half).has("admin")
    assert (tmp_path / "users.db.half-1").exists()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")


def a_file_of_somebody(path: Path) -> None:
    """Which is empty, as `authorized_keys` may be."""
    path.touch()


@pytest.mark.parametrize("made", [a_fifo, a_device, a_file_of_somebody])
def test_no_database_takes_the_place_of_what_a_link_leads_to(tmp_path: Path, made: Callable[[Path], None]) -> None:
    """It is named, and stays as it is."""
    made(tmp_path / "theirs")
    before = os.lstat(tmp_path / "theirs")
    (tmp_path / "mlflow.db").symlink_to("theirs")
    with pytest.raises(RunError, match=r"mlflow\.db.*\nFix:"):
        have_database(tmp_path / "mlflow.db", schema())
    after = os.lstat(tmp_path / "theirs")
    assert (before.st_ino, before.st_mode, before.st_size) == (after.st_ino, after.st_mode, after.st_size)
    assert {"mlflow.db", "theirs"} == {file.name for file in tmp_path.iterdir()}


def test_a_link_to_another_disk_stays_one(tmp_path: Path) -> None:
    """The database is made where it leads, where nothing is yet."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "disk" / "mlflow.db")
    have_database(tmp_path / "mlflow.db", schema())
    assert (tmp_path / "mlflow.db").is_symlink()
    assert is_current(tmp_path / "disk" / "mlflow.db", schema())


def test_a_look_at_a_database_frees_no_lock_of_the_process(tmp_path: Path) -> None:
    """Of a connection that writes, which would let others write at the same time, and the file be malformed."""
    path = tmp_path / "mlflow.db"
    impatient = replace(schema(), busy_s=0.05)
    have_database(path, impatient)
    for look in (lambda: have_database(path, impatient), lambda: _read_all(path), lambda: is_current(path, impatient)):
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("PRAGMA journal_mode=DELETE")
            writer.execute("BEGIN EXCLUSIVE")
            with suppress(sqlite3.OperationalError, RunError):  # it is locked
                look()
            code = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
            other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert "database is locked" in other.stderr


def _read_all(path: Path) -> None:
    with reading(path, timeout_s=0) as connection:
        connection.execute("SELECT * FROM things").fetchall()
