"""Snapshots in a directory: made, kept, checked, brought back."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path

from hpcexp.backup import databases
from hpcexp.backup.copying import Copier, LeftOut, files_below, restored
from hpcexp.backup.manifest import NAME, Manifest, Tree, damage, load, missing, save
from hpcexp.backup.moving import STORE_FILE, move, move_artifacts
from hpcexp.errors import RunError
from hpcexp.files.locks import held
from hpcexp.files.untrusted import safe_mode
from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.links import artifact_root
from hpcexp.tracking.mlflow.uri import sqlite_path
from hpcexp.tracking.server.group_server import unserved

KINDS = ("runs", "server")
"""Trees that a snapshot may have, each in a directory of this name."""
_PARTIAL = ".half-"
_STORE_DUMP = "store.dump"
_STAGE = ".backup"


@dataclass(frozen=True)
class SnapshotDirectory:
    """A directory to keep, and the database that belongs to it."""

    root: Path
    store: str

    @property
    def stage(self) -> Path:
        """Where a snapshot may lie on the same file system."""
        return self.root / _STAGE


def check_apart(target: Path, directories: Mapping[str, SnapshotDirectory]) -> None:
    """RunError where `target` lies in a directory that is to be kept, or that one in it."""
    for root in (directory.root for directory in directories.values()):
        if target.is_relative_to(root):
            raise RunError(
                f"{target} is in {root}: each backup would keep those before it again.\nFix: a directory outside of it."
            )
        if root.is_relative_to(target):
            raise RunError(f"{root} is in {target}, among the snapshots.\nFix: a directory for snapshots alone.")


def backup(
    target: Path, directories: Mapping[str, SnapshotDirectory], left_out: dict[str, str]
) -> tuple[Path, Manifest]:
    """A new snapshot in `target`, which shares unchanged files with the one before.

    RunError, and no trace, where it could not be written. `left_out` gets what it lacks, and why.
    """
    check_apart(target, directories)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunError(f"{target} cannot be made: {e.strerror}.\nFix: a directory that you may write.") from e
    with held(target / ".lock", f"{target} is being written by"):
        for half in target.glob(f"{_PARTIAL}*"):
            shutil.rmtree(half)
        previous = {name: found for name in directories if (found := _previous(target, name))}
        name = _free_name(target)
        half = target / f"{_PARTIAL}{name}"
        with _whole_or_gone(half):
            manifest = write_snapshot(half, directories, previous, left_out)
            os.sync()
            half.rename(target / name)
    return target / name, manifest


def write_snapshot(
    snapshot: Path,
    directories: Mapping[str, SnapshotDirectory],
    previous: Mapping[str, Path] | None = None,
    left_out: dict[str, str] | None = None,
    *,
    links: bool = False,
) -> Manifest:
    """Fill the directory `snapshot`; its manifest comes last.

    `previous`: the snapshot before of each tree. `left_out` gets what is not kept, and why.
    """
    left_out = {} if left_out is None else left_out
    modes = {name: _mode(name, directory.root) for name, directory in directories.items()}
    snapshot.mkdir(reduce(and_, modes.values()), parents=True)
    manifest = Manifest(time.time(), socket.gethostname())
    for name, directory in directories.items():
        before = previous.get(name) if previous else None
        (snapshot / name).mkdir()
        copier = Copier(snapshot, manifest, before, load(before) if before else None, left_out, links)
        dumped = _copied(copier, name, directory)
        manifest.trees[name] = Tree(str(directory.root), without_password(directory.store), dumped, modes[name])
    save(manifest, snapshot)
    return manifest


def snapshots(target: Path) -> list[Path]:
    """The whole ones, the oldest first."""
    return sorted(path.parent for path in target.glob(f"[0-9]*/{NAME}") if not path.parent.is_symlink())


def kinds(snapshot: Path) -> set[str]:
    """Which trees it has, as far as that is known where its manifest is damaged."""
    return {kind for kind in KINDS if (snapshot / kind).is_dir()}


def chosen(target: Path, name: str | None, wanted: Collection[str] = ()) -> Path:
    """The snapshot of this name, or the latest, that has these trees; RunError where there is none."""
    found = {path.name: kinds(path) for path in snapshots(target)}
    return target / choice(str(target), found, name, wanted)


def choice(target: str, found: Mapping[str, set[str]], name: str | None, wanted: Collection[str]) -> str:
    """`chosen` by name, where `found` are the trees of each snapshot, the oldest first."""
    having = [one for one, trees in found.items() if name in (None, one) and trees.issuperset(wanted)]
    if not having:
        known = ", ".join(f"{one} ({' and '.join(sorted(trees)) or 'not said'})" for one, trees in found.items())
        what = "no snapshot" if name is None else f"no snapshot '{name}'"
        of = f" with {' and '.join(sorted(wanted))}" if wanted else ""
        raise RunError(
            f"{target} has {what} of `hpcexp backup`{of}. There are: {known or 'none'}.\n"
            "Fix: --root DIR for runs, --server DIR for a server, --at NAME, or another directory."
        )
    return having[-1]


def to_verify(target: Path, name: str | None) -> list[Path]:
    """The snapshot of this name, or the latest of runs and the latest of a server."""
    found = snapshots(target) if name is None else []
    latest = {max(having) for kind in KINDS if (having := [path for path in found if kind in kinds(path)])}
    return sorted(latest) or [chosen(target, name)]


def forget(made: Path, keep: int) -> int:
    """Remove all but the latest `keep` snapshots with the trees that `made` has; how many those were."""
    old = [path for path in snapshots(made.parent) if kinds(path) == kinds(made)][:-keep]
    for snapshot in old:
        (snapshot / NAME).unlink()  # from here on it is none, if this is broken off
        shutil.rmtree(snapshot)
    return len(old)


def restore(snapshot: Path, directories: Mapping[str, SnapshotDirectory], *, force: bool) -> list[str]:
    """Bring trees of a snapshot back to `directories`, checked; what was put aside for it.

    RunError, and everything as it was, where a file is damaged, a directory is not empty, or a server runs there.
    """
    manifest = load(snapshot)
    _check_directories(manifest, directories, force=force)
    _check_files(snapshot, manifest, directories)
    with ExitStack() as stack:
        if "server" in directories and not _is_empty(directories["server"].root):
            stack.enter_context(unserved(directories["server"].root))
        stages = {}
        for name, directory in directories.items():
            stages[name] = _staged(snapshot, manifest, name, directory)
            stack.callback(shutil.rmtree, stages[name], ignore_errors=True)
        for name, directory in directories.items():
            _load_database(stages[name], manifest.trees[name], directory)
        return [aside for name, directory in directories.items() if (aside := _swapped(stages[name], directory.root))]


def _mode(name: str, root: Path) -> int:
    """Whom a copy is for: those of the original, and of a server's accounts nobody else."""
    return 0o700 if name == "server" else root.stat().st_mode & 0o777 | 0o700


def _copied(copier: Copier, name: str, directory: SnapshotDirectory) -> str | None:
    """Copy a tree in the order in which its parts refer to each other; its database's name in the snapshot.

    Sweeps before the runs that they start, runs before the database that has at least what they have synced, the
    database before the artifacts.
    """
    artifacts = artifact_root(directory.root)
    single = {directory.root / STORE_FILE, directory.root / "users.db"}
    for unit in _units(directory.root, copier.leave_out):
        copier.directory(unit, f"{name}/{unit.relative_to(directory.root)}")
    for file in files_below(directory.root, lambda _, __: None, deep=False):
        if file not in single:
            copier.file(file, f"{name}/{file.name}")
    dumped = _dump(copier, name, directory)
    copier.file(directory.root / "users.db", f"{name}/users.db")
    for file in files_below(artifacts, copier.leave_out):
        copier.file(file, f"{name}/{file.relative_to(directory.root)}")
    return dumped


def _units(root: Path, left_out: LeftOut) -> Iterator[Path]:
    """Directories of sweeps and runs; each is copied as of one moment. `left_out` gets the links."""
    folders = [folder for folder in _directories(root, left_out) if not folder.name.startswith(".")]
    for folder in sorted(folders, key=lambda folder: folder.name != "sweeps"):
        if folder.name != artifact_root(root).name:
            yield from _directories(folder, left_out)


def _directories(folder: Path, left_out: LeftOut) -> list[Path]:
    """Those in a folder, sorted."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink():
            left_out(Path(entry.path), "it is a link")
    return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _dump(copier: Copier, name: str, directory: SnapshotDirectory) -> str | None:
    """Copy the database; its name in the snapshot, None where there is none yet."""
    if databases.is_postgres(directory.store):
        dumped = f"{name}/{_STORE_DUMP}"
        databases.dump(directory.store, copier.made(dumped))
        copier.enter(dumped)
        return dumped
    path = sqlite_path(directory.store)
    if path is None:
        raise RunError(
            f"{without_password(directory.store)} cannot be backed up from here.\n"
            "Fix: back up on the machine of the server, with --server DIR; or --store with SQLite or PostgreSQL."
        )
    if path.is_symlink() and path.is_relative_to(directory.root):
        raise RunError(f"{path} is a link, which is not followed.\nFix: --store sqlite:///{path.resolve()}")
    if not path.exists():
        return None
    copier.sqlite(path, f"{name}/{STORE_FILE}")
    return f"{name}/{STORE_FILE}"


@contextmanager
def _whole_or_gone(half: Path) -> Iterator[None]:
    """No trace of what could not be written; RunError for what the system said."""
    try:
        yield
    except BaseException as e:
        shutil.rmtree(half, ignore_errors=True)
        if isinstance(e, OSError | sqlite3.Error):
            why = f"{e.strerror} ({e.filename})" if isinstance(e, OSError) and e.filename else str(e)
            raise RunError(
                f"The backup could not be written to {half.parent}: {why}. Those before it are as they were.\n"
                "Fix: make room, or `--keep N` to have older ones go."
            ) from e
        raise


def _previous(target: Path, kind: str) -> Path | None:
    having = (path for path in reversed(snapshots(target)) if kind in kinds(path))
    return next(filter(_is_readable, having), None)


def _is_readable(snapshot: Path) -> bool:
    with suppress(RunError):
        load(snapshot)
        return True
    return False


def _free_name(target: Path) -> str:
    name = time.strftime("%Y-%m-%dT%H-%M-%S")
    taken = [int(path.name[len(name) + 1 :] or 0) for path in target.glob(f"{name}*")]
    return name if not taken else f"{name}-{max(taken) + 1}"


def _check_directories(manifest: Manifest, directories: Mapping[str, SnapshotDirectory], *, force: bool) -> None:
    for name, directory in directories.items():
        if name not in manifest.trees:
            known = " and ".join(manifest.trees)
            raise RunError(f"That snapshot has no {name}, only {known}.\nFix: --root for runs, --server for a server.")
        if not force and not _is_empty(directory.root):
            raise RunError(
                f"{directory.root} is not empty.\nFix: another directory, or --force, which puts aside what is there."
            )
        dumped = manifest.trees[name].dump or ""
        if dumped.endswith(_STORE_DUMP) != databases.is_postgres(directory.store):
            raise RunError(
                f"The snapshot's database is of {manifest.trees[name].store}, which cannot go into "
                f"{without_password(directory.store)}.\nFix: --store with a database of the same kind."
            )
        if databases.is_postgres(directory.store) and not force:
            databases.check_empty(directory.store)


def _check_files(snapshot: Path, manifest: Manifest, directories: Mapping[str, SnapshotDirectory]) -> None:
    """RunError where a file is not there, none that may be restored, or where they do not fit; makes nothing."""
    meant = {name: entry for name, entry in manifest.files.items() if name.partition("/")[0] in directories}
    if damaged := missing(snapshot, replace(manifest, files=meant)):
        # What the system says is mostly that there is none.
        shown = [f"{name} ({why})" if why.startswith("it ") else name for name, why in damaged.items()]
        raise _damaged(snapshot, list(damaged), shown)
    for name, directory in directories.items():
        size = sum(entry.size for path, entry in meant.items() if path.startswith(f"{name}/"))
        there = next(folder for folder in directory.root.parents if folder.is_dir())
        if size > (free := shutil.disk_usage(there).free):
            raise RunError(
                f"{snapshot} has {size / 1e9:,.1f} GB for {directory.root}, where {free / 1e9:,.1f} GB are free. "
                "Nothing was changed.\nFix: make room, or another directory."
            )
        path = sqlite_path(directory.store) if manifest.trees[name].dump else None
        if path is not None and path != directory.root / STORE_FILE and os.path.lexists(path):
            raise RunError(f"{path} is there already.\nFix: another --store, or move it away.")


def _is_empty(root: Path) -> bool:
    return not root.exists() or not any(root.iterdir())


def _staged(snapshot: Path, manifest: Manifest, name: str, directory: SnapshotDirectory) -> Path:
    """The tree beside its target, with its paths changed to those of the target."""
    stage = directory.root.with_name(f".{directory.root.name}.restoring")
    shutil.rmtree(stage, ignore_errors=True)
    new = [folder for folder in stage.parents if not folder.exists()]
    damaged = []
    try:
        stage.mkdir(0o700, parents=True)  # nobody else puts anything in before it is whole
        for path, entry in manifest.files.items():
            head, _, rest = path.partition("/")
            if head == name and not restored(snapshot, path, stage / rest, entry):
                damaged.append(path)
        if damaged:
            raise _damaged(snapshot, damaged, damaged)
        move(stage, manifest.trees[name], directory.root, directory.store)
        stage.chmod(safe_mode(manifest.trees[name].mode) | stat.S_IRWXU)
    except BaseException as e:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(e, OSError):
            raise RunError(
                f"{directory.root} could not be restored: {e.strerror} ({e.filename}). Nothing was changed.\n"
                "Fix: make room, or another directory."
            ) from e
        raise
    return stage


def _damaged(snapshot: Path, names: list[str], shown: list[str]) -> RunError:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return RunError(
        f"{len(names)} files of {snapshot} are damaged: {', '.join(shown[:5])}{more}. "
        f"Nothing was changed.\n{_other_copies(snapshot, names)}"
    )


def _other_copies(snapshot: Path, damaged: list[str]) -> str:
    """Where these files of a snapshot are whole, or else how to have them so; a link to them is no other copy."""
    others = [path for path in snapshots(snapshot.parent) if path != snapshot and _is_readable(path)]
    whole = [path.name for path in others if _has_whole(path, damaged)]
    if whole:
        return f"Fix: --at NAME, where these are whole: {', '.join(whole)}."
    return (
        "No other snapshot has these whole.\n"
        "Fix: `hpcexp backup … --verify`, after which the next backup copies them anew from where they are in use."
    )


def _has_whole(snapshot: Path, names: list[str]) -> bool:
    manifest = load(snapshot)
    files = {name: manifest.files[name] for name in names if name in manifest.files}
    return len(files) == len(names) and not any(damage(snapshot, replace(manifest, files=files)))


def _load_database(stage: Path, tree: Tree, directory: SnapshotDirectory) -> None:
    """Put a dump into PostgreSQL, or SQLite's file where it is kept outside the directory."""
    if (stage / _STORE_DUMP).exists():
        databases.load(stage / _STORE_DUMP, directory.store)
        (stage / _STORE_DUMP).unlink()
        move_artifacts(directory.store, tree, directory.root)
        return
    path = sqlite_path(directory.store)
    if path not in (None, directory.root / STORE_FILE) and (stage / STORE_FILE).exists():
        shutil.move(stage / STORE_FILE, path)


def _swapped(stage: Path, root: Path) -> str | None:
    """Move the tree to its target; the path of what was there before."""
    aside = None
    if not _is_empty(root):
        aside = root.with_name(f"{root.name}.before-{time.strftime('%Y-%m-%dT%H-%M-%S')}")
        root.rename(aside)
    elif root.exists():
        root.rmdir()
    stage.rename(root)
    return str(aside) if aside else None
