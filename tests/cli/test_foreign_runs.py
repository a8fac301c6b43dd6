"""Archives and run directories that somebody else has made: nothing outside of them is written, read or uploaded."""

from __future__ import annotations

import grp
import multiprocessing
import os
import pwd
import shutil
import socket
import sqlite3
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePath
from tempfile import mkdtemp

import pytest
from helpers import Said
from record_support import finish, make_run

from hpcexp.backup.manifest import SnapshotEntry, load, save
from hpcexp.backup.snapshots import snapshots
from hpcexp.files.atomic import write_json
from hpcexp.files.untrusted import UnusableFileError, open_below
from hpcexp.lineage.manifest import differences, seal
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal, read_points
from hpcexp.runs.records.status import read_status

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""
PLAN = "runs/digits_mlp/x/plan.yaml"
ZEROS = SnapshotEntry(0, 0, 0o644, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


@pytest.fixture
def run(project: Path) -> RunDir:
    """A run that has ended and is in no MLflow yet."""
    run = make_run(project / "runs", f"sqlite:///{project}/runs/mlflow.db", "x", steps=2)
    finish(run)
    return run


@pytest.fixture
def snapshot(run: RunDir, project: Path, hpcexp: Callable[..., Said]) -> Path:
    """A backup of it, which is then changed by somebody who can compute a checksum, too."""
    assert 0 == hpcexp("backup", "kept").status
    return snapshots(project / "kept")[-1]


@pytest.fixture
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a key, of this user and outside of the project."""
    place = tmp_path_factory.mktemp("home")
    (place / "id_rsa").write_text("k3y of mine")
    return place


def content(place: Path) -> dict[str, tuple[int, int]]:
    """Everything below a directory, with mode and size."""
    return {
        str(path.relative_to(place)): (path.lstat().st_mode, 0 if path.is_dir() else path.lstat().st_size)
        for path in place.rglob("*")
        if path.name != ".lock"
    }


NAMES = {
    "absolute": "runs//{outside}",
    "up": "../outside",
    "up again": "runs/a/../../../outside",
    "of no tree": "outside",
    "of the tree itself": "runs/",
    "with a line end": "runs/a\nb",
    "with an escape": "runs/a\x1b[2Jb",
    "too long": "runs/" + "x" * 256,
    "below a file": f"{PLAN}/x",
    "nowhere": "runs/./x",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leaves_its_place_restores_nothing(
    snapshot: Path, project: Path, secret: Path, hpcexp: Callable[..., Said], name: str
) -> None:
    """Not even what comes before it in the manifest."""
    manifest = load(snapshot)
    manifest.files[NAMES[name].format(outside=secret / "written")] = ZEROS
    save(manifest, snapshot)
    before = content(project), content(secret)
    said = hpcexp("restore", "kept", "--root", "new/back")
    assert (2, "") == (said.status, said.out)
    assert "manifest.json is damaged: " in said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    assert before == (content(project), content(secret))


def made_link(path: Path, secret: Path) -> None:
    """A link to a key where a file was."""
    path.unlink()
    path.symlink_to(secret / "id_rsa")


def made_folder_link(path: Path, secret: Path) -> None:
    """A link to somebody else's directory where the file's own directory was."""
    shutil.copy(path, secret / path.name)
    shutil.rmtree(path.parent)
    path.parent.symlink_to(secret)


def made_fifo(path: Path, _: Path) -> None:
    """A pipe that nobody writes to: reading it never ends."""
    path.unlink()
    os.mkfifo(path)


def made_socket(path: Path, _: Path) -> None:
    path.unlink()
    os.chdir(path.parent)  # a socket's name has at most 108 characters
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path.name)


def made_longer(path: Path, _: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 43)


@pytest.mark.parametrize("made", [made_link, made_folder_link, made_fifo, made_socket, made_longer])
def test_a_snapshots_file_that_is_something_else_restores_nothing(
    snapshot: Path,
    project: Path,
    secret: Path,
    hpcexp: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[Path, Path], None],
) -> None:
    """A link, a pipe, a socket, terabytes of nothing: found before the first file is made."""
    made(snapshot / PLAN, secret)
    monkeypatch.chdir(project)
    before = content(project)
    said = hpcexp("restore", "kept", "--root", "new/back")
    assert (2, "") == (said.status, said.out)
    assert f"{PLAN} (it " in said.err
    assert "Nothing was changed." in said.err
    assert before == content(project)
    assert 1 == hpcexp("backup", "kept", "--verify").status


def test_more_than_there_is_room_for_restores_nothing(
    snapshot: Path, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """Ten lines of an archive can be a file of eight terabytes."""
    manifest = load(snapshot)
    manifest.files["runs/digits_mlp/x/large"] = replace(ZEROS, size=1 << 43)
    with (snapshot / "runs/digits_mlp/x/large").open("wb") as file:
        file.truncate(1 << 43)
    save(manifest, snapshot)
    before = content(project)
    said = hpcexp("restore", "kept", "--root", "new/back")
    assert 2 == said.status
    assert "has 8,796.1 GB for" in said.err
    assert before == content(project)


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1, "mtime_ns": 0, "mode": 0o644, "sha256": ZEROS.sha256},
        {"size": 0, "mtime_ns": 1 << 80, "mode": 0o644, "sha256": ZEROS.sha256},
        {"size": 0, "mtime_ns": 0, "mode": 1 << 40, "sha256": ZEROS.sha256},
        {"size": 0, "mtime_ns": 0, "mode": 0o644, "sha256": "none"},
        {"size": "0", "mtime_ns": 0, "mode": 0o644, "sha256": ZEROS.sha256},
    ],
)
def test_a_manifest_of_other_types_is_damaged(
    snapshot: Path, hpcexp: Callable[..., Said], entry: dict[str, object]
) -> None:
    """And ends no command with a traceback, though its checksum is right."""
    manifest = load(snapshot)
    manifest.files[PLAN] = entry  # type: ignore[assignment]
    save(manifest, snapshot)
    said = hpcexp("restore", "kept", "--root", "back")
    assert 2 == said.status
    assert "manifest.json is damaged: " in said.err


def test_modes_of_a_snapshot_are_cut_to_the_umask(snapshot: Path, project: Path, hpcexp: Callable[..., Said]) -> None:
    """Nothing comes back setuid, or writable by everybody; nor is the directory so."""
    manifest = load(snapshot)
    manifest.files[PLAN] = replace(manifest.files[PLAN], mode=0o6777)
    manifest.trees["runs"] = replace(manifest.trees["runs"], mode=0o7777)
    save(manifest, snapshot)
    before = os.umask(0o027)
    try:
        assert 0 == hpcexp("restore", "kept", "--root", "back").status
    finally:
        os.umask(before)
    assert 0o750 == stat.S_IMODE((project / "back/digits_mlp/x/plan.yaml").stat().st_mode)
    assert 0o750 == stat.S_IMODE((project / "back").stat().st_mode)


def test_a_link_in_the_place_of_a_snapshot_is_none(
    snapshot: Path, project: Path, secret: Path, hpcexp: Callable[..., Said]
) -> None:
    """Where snapshots are kept together with others."""
    moved = secret / "snapshot"
    snapshot.rename(moved)
    snapshot.symlink_to(moved)
    said = hpcexp("restore", "kept", "--root", "back")
    assert 2 == said.status
    assert "There are: none." in said.err
    assert not (project / "back").exists()


def test_a_backup_names_what_it_leaves_out(
    run: RunDir, project: Path, secret: Path, hpcexp: Callable[..., Said]
) -> None:
    """Links to nothing, to a file, to directories at every depth, a pipe, names that nothing could be restored by."""
    (run.path / "nothing").symlink_to(project / "none")
    (run.path / "key").symlink_to(secret / "id_rsa")
    (run.path / "home").symlink_to(secret)
    (project / "runs/digits_mlp/y").symlink_to(secret)
    (project / "runs/other").symlink_to(secret)
    (run.path / "two\nlines").write_text("x")
    os.mkfifo(run.path / "pipe")
    said = hpcexp("backup", "kept")
    assert 0 == said.status
    expected = {"nothing": "link", "key": "link", "home": "link", "y": "link", "other": "link", "pipe": "FIFO"}
    for name, kind in expected.items():
        assert f"{name}': it is a {kind}\n" in said.err
    assert "two\\nlines': it has a control character\n" in said.err
    assert 7 == said.err.count("left out: ")
    assert not any(b"k3y" in file.read_bytes() for file in (project / "kept").rglob("*") if file.is_file())
    assert 0 == hpcexp("restore", "kept", "--root", "back").status


def test_a_file_that_is_mostly_holes_is_not_copied_for_hours(
    run: RunDir, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """A log, and a database: each is named, and everything else is kept."""
    for name in ("logs/rank-0.log", "other.db"):
        with (run.path / name).open("ab") as file:
            file.write(b"SQLite format 3\0" * name.endswith(".db"))
            file.truncate(1 << 40)
    said = hpcexp("backup", "kept")
    assert 0 == said.status, said
    for name in ("logs/rank-0.log", "other.db"):
        assert f"{name}': it is mostly holes: 1,099,511,627,776 bytes" in said.err


def test_a_file_that_only_begins_like_a_database_is_kept(
    run: RunDir, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """As any other."""
    (run.path / "odd.bin").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    assert 0 == hpcexp("backup", "kept").status
    assert 0 == hpcexp("restore", "kept", "--root", "back").status
    assert (run.path / "odd.bin").read_bytes() == (project / "back/digits_mlp/x/odd.bin").read_bytes()


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
def test_a_repository_of_restic_brings_back_no_links(
    snapshot: Path, project: Path, secret: Path, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor anything else than files and directories, whatever its snapshot has beside them."""
    repository = str(project / "repository")
    monkeypatch.setenv("RESTIC_PASSWORD", "s3cr3t")
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(project / "cache"))
    (snapshot / "runs/digits_mlp/x/home").symlink_to(secret)
    restic = ["restic", "--repo", repository, "--quiet"]
    subprocess.run([*restic, "init"], check=True)
    subprocess.run([*restic, "backup", "--tag", "hpcexp,runs", "."], cwd=snapshot, check=True)
    said = hpcexp("restore", f"restic:{repository}", "--root", "new/back")
    assert (2, "") == (said.status, said.out)
    assert "'/runs/digits_mlp/x/home', which is refused: it is a symlink. Nothing was changed.\nFix: " in said.err
    assert not (project / "new").exists()


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
