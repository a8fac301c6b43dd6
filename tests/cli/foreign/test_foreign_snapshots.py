"""Archives and snapshots that somebody else has made: nothing outside of them is written or read."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Said

from hpcexp.backup.manifest import SnapshotEntry, load, save
from hpcexp.backup.snapshots import snapshots
from hpcexp.rundir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


PLAN = "runs/digits_mlp/x/plan.yaml"


ZEROS = SnapshotEntry(0, 0, 0o644, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


@pytest.fixture
def snapshot(run: RunDir, project: Path, hpcexp: Callable[..., Said]) -> Path:
    """A backup of it, which is then changed by somebody who can compute a checksum, too."""
    assert 0 == hpcexp("backup", "kept").status
    return snapshots(project / "kept")[-1]


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
