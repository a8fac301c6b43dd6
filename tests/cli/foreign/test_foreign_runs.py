"""Run directories that somebody else has made: nothing outside of them is written, read or uploaded."""

from __future__ import annotations

import grp
import multiprocessing
import os
import pwd
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path, PurePath
from tempfile import mkdtemp

import pytest
from helpers import Said
from record_support import finish, make_run

from hpcexp.files.atomic import write_json
from hpcexp.files.untrusted import UnusableFileError, open_below
from hpcexp.lineage.manifest import differences, seal
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal, read_points
from hpcexp.runs.records.status import read_status

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


@pytest.fixture
def synced(run: RunDir, project: Path, hpcexp: Callable[..., Said]) -> Callable[[], tuple[Said, dict[str, str]]]:
    """`hpcexp sync`, and the files that MLflow has of the run then."""

    def sync() -> tuple[Said, dict[str, str]]:
        said = hpcexp("sync")
        uploads = project / "runs" / "mlartifacts"
        return said, {file.name: file.read_text(errors="replace") for file in uploads.rglob("*") if file.is_file()}

    return sync


Synced = Callable[[], tuple[Said, dict[str, str]]]


def test_sync_sends_no_file_that_a_link_leads_to(run: RunDir, secret: Path, synced: Synced) -> None:
    """In the place of a record, of a log, of the weights, in a folder, and as one: each is named."""
    for path in (run.confusion, run.rank_log(0), run.best):
        path.unlink()
        path.symlink_to(secret / "id_rsa")
    (run.lineage / "deep").mkdir(parents=True)
    (run.lineage / "deep" / "code.json").symlink_to(secret / "id_rsa")
    (run.lineage / "home").symlink_to(secret)
    os.mkfifo(run.lineage / "pipe")
    (run.lineage / "origin.json").write_text("{}")
    said, sent = synced()
    assert 0 == said.status, said
    assert "{}" == sent["origin.json"]
    assert {"plan.yaml", "summary.json"} <= {*sent}
    assert not [name for name, text in sent.items() if "k3y" in text]
    for name in ("confusion.json", "rank-0.log", "best.ckpt", "code.json", "home"):
        assert f"{name}': it is a link" in said.err
    assert "pipe': it is a FIFO" in said.err


def test_sync_enters_no_folder_that_is_a_link(run: RunDir, secret: Path, synced: Synced) -> None:
    """What lies in it has the name of the weights."""
    (secret / "best.ckpt").write_text("k3y")
    shutil.rmtree(run.checkpoints)
    run.checkpoints.symlink_to(secret)
    said, sent = synced()
    assert 0 == said.status, said
    assert "it is a link" in said.err
    assert not [text for text in sent.values() if "k3y" in text]


def test_sync_writes_no_picture_where_a_link_leads(run: RunDir, secret: Path, synced: Synced) -> None:
    """Nor a log, and takes no records from there."""
    for name in ("plots", "logs", "lineage"):
        shutil.rmtree(run.path / name, ignore_errors=True)
        (run.path / name).symlink_to(secret)
        said, sent = synced()
        assert (1, {}) == (said.status, sent)
        assert f"{name} is not used: it is a link.\nFix: " in said.out
        assert ["id_rsa"] == [path.name for path in secret.iterdir()]
        (run.path / name).unlink()


def test_a_lock_that_is_a_link_empties_nobodys_file(run: RunDir, secret: Path, synced: Synced) -> None:
    """Neither a symbolic link nor a second name of the file."""
    run.sync_lock.unlink(missing_ok=True)
    run.sync_lock.symlink_to(secret / "id_rsa")
    said, _ = synced()
    assert 1 == said.status
    assert ".sync.lock is damaged: it is a link." in said.out
    assert "k3y of mine" == (secret / "id_rsa").read_text()
    run.sync_lock.unlink()
    run.sync_lock.hardlink_to(secret / "id_rsa")
    said, _ = synced()
    assert 0 == said.status
    assert "k3y of mine" == (secret / "id_rsa").read_text()


def test_sync_makes_no_tables_in_another_programs_database(
    project: Path, secret: Path, hpcexp: Callable[..., Said]
) -> None:
    """Which a run may name as its store."""
    cookies = secret / "cookies.sqlite"
    with closing(sqlite3.connect(cookies)) as connection, connection:
        connection.execute("CREATE TABLE moz_cookies (name)")
    before = cookies.read_bytes()
    finish(make_run(project / "runs", f"sqlite:///{cookies}", steps=1))
    said = hpcexp("sync")
    assert 1 == said.status
    assert "is no database of MLflow's: it has a table moz_cookies" in said.out
    assert before == cookies.read_bytes()


def test_a_log_of_terabytes_is_not_sent(run: RunDir, synced: Synced) -> None:
    """Which takes no room on the disk of who has made it."""
    with run.rank_log(0).open("wb") as file:
        file.truncate(1 << 43)
    with run.best.open("wb") as file:
        file.truncate(1 << 43)
    write_json(
        run.summary,
        {"best": {"monitor": "val/acc", "value": 0.9, "epoch": 1, "path": "checkpoints/best.ckpt", "sha256": "0" * 64}},
    )
    said, sent = synced()
    assert 0 == said.status, said
    assert "rank-0.log" not in sent
    assert "rank-0.log': it has 8,796,093,022,208 bytes, and 1,073,741,824 are sent at most" in said.err
    assert "best.ckpt': it has 8,796,093,022,208 bytes, of which the disk holds 0" in said.err


def test_what_is_appended_reaches_no_second_name(tmp_path: Path) -> None:
    """As an archive gives a journal that of somebody's file, or `cp -al` that of a copy."""
    other = tmp_path / "other"
    other.write_text('{"t": 1, "s": 1, "m": {"a": 1.0}}\ntorn')
    run = RunDir(tmp_path)
    run.journal.hardlink_to(other)
    journal = Journal(run.journal)
    journal.append([(2, {"a": 2.0})])
    journal.close()
    assert '{"t": 1, "s": 1, "m": {"a": 1.0}}\ntorn' == other.read_text()
    assert [1, 2] == [point.step for point in read_points(run.journal)[0]]
    run.journal.unlink()
    run.journal.symlink_to(other)
    with pytest.raises(UnusableFileError, match="it is a link"):
        Journal(run.journal)


def swap(place: Path) -> None:
    """What user `nobody` does to a directory for ever."""
    os.setgid(grp.getgrnam("nogroup").gr_gid)
    os.setuid(pwd.getpwnam("nobody").pw_uid)
    os.chdir(place)
    while True:
        Path("lineage").rename("aside")
        Path("lineage").symlink_to("trap")
        Path("lineage").unlink()
        Path("aside").rename("lineage")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_folder_that_another_user_swaps_for_a_link_leads_nowhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Between the check and the opening: what was opened counts, not its name."""
    secret = tmp_path_factory.mktemp("secret")
    (secret / "code.json").write_text("k3y")
    place = Path(mkdtemp())
    try:
        (place / "lineage").mkdir()
        (place / "lineage" / "code.json").write_text("mine")
        (place / "trap").symlink_to(secret)
        shutil.chown(place, "nobody")
        attacker = multiprocessing.get_context("fork").Process(target=swap, args=[place])
        attacker.start()
        try:
            outcomes: Counter[str] = Counter()
            while len(outcomes) < 2 or outcomes.total() < 3000:
                try:
                    with open_below(place, PurePath("lineage/code.json")) as file:
                        outcomes[file.read().decode()] += 1
                except (UnusableFileError, FileNotFoundError):
                    outcomes["refused"] += 1
            assert attacker.is_alive()
        finally:
            attacker.kill()
            attacker.join()
    finally:
        shutil.rmtree(place)
    assert {"mine", "refused"} == {*outcomes}


def test_a_seal_follows_no_link(run: RunDir, secret: Path) -> None:
    """A link that was sealed is recognised by its target; a new one, or one that replaced a file, is reported."""
    (run.path / "mine").symlink_to(secret / "id_rsa")
    seal(run, read_status(run))
    assert [] == differences(run)
    (secret / "id_rsa").unlink()
    assert [] == differences(run)
    os.mkfifo(secret / "id_rsa")  # hashing it would never end
    run.confusion.unlink()
    run.confusion.symlink_to(secret / "id_rsa")
    (run.path / "mine").unlink()
    (run.path / "mine").symlink_to("/etc/passwd")
    (run.path / "new").symlink_to(secret)
    assert [("changed", "confusion.json: it is a link"), ("changed", "mine: it is a link"), ("added", "new")] == (
        differences(run)
    )
