"""`hpcexp backup` and `hpcexp restore`: runs, artifacts, databases and accounts, elsewhere and back."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcexp.backup import restic, snapshots
from hpcexp.backup.databases import is_postgres
from hpcexp.backup.manifest import Manifest, damage, disown, load
from hpcexp.backup.snapshots import SnapshotDirectory
from hpcexp.cli.shared.arguments import parser
from hpcexp.errors import ConfigError, RunError
from hpcexp.redaction import without_passwords
from hpcexp.tracking.mlflow.uri import resolve_uri


def backup(argv: Sequence[str]) -> int:
    """Exit status 0 when everything is kept, 1 when a snapshot is damaged."""
    p = parser("backup", "Back up runs, artifacts, databases and a server's accounts, also while they are in use.")
    _add_places(p)
    p.add_argument("--keep", type=int, metavar="N", help="afterwards, remove all but the latest N snapshots "
                   "of the same source")  # fmt: skip
    p.add_argument("--verify", action="store_true", help="instead of making a snapshot, check the latest of "
                   "runs and of a server against their checksums")  # fmt: skip
    p.add_argument("--at", metavar="NAME", help="with --verify: this snapshot instead of the latest")
    a = p.parse_args(argv)
    if a.keep is not None and a.keep < 1:
        raise ConfigError(f"--keep {a.keep} would leave nothing.\nFix: --keep 1 or more.")
    repository = _repository(a.target)
    if a.verify:
        return _verify(a.target, repository, a.at)
    directories = _directories(a)
    for directory in directories.values():
        if not directory.root.is_dir():
            raise RunError(f"There is no {directory.root}.\nFix: --root DIR for runs, --server DIR for a server.")
    lacks: dict[str, str] = {}
    if repository is not None:
        print(f"{without_passwords(repository)}: {_summary(restic.backup(repository, directories, lacks))}")
        _tell_left_out(lacks)
        if a.keep:
            restic.forget(repository, directories, a.keep)
        return 0
    made, manifest = snapshots.backup(Path(a.target).resolve(), directories, lacks)
    print(f"{made}: {_summary(manifest)}")
    _tell_left_out(lacks)
    if a.keep and (gone := snapshots.forget(made, a.keep)):
        print(f"{gone} older snapshots removed")
    return 0


def restore(argv: Sequence[str]) -> int:
    """Bring a snapshot back, checked file by file."""
    p = parser("restore", "Restore a snapshot of `hpcexp backup`. Stop a server first.")
    _add_places(p)
    p.add_argument("--at", metavar="NAME", help="this snapshot instead of the latest")
    p.add_argument("--force", action="store_true", help="move existing files aside, and replace a database's tables")
    a = p.parse_args(argv)
    directories, repository = _directories(a), _repository(a.target)
    if repository is None:
        snapshot = snapshots.chosen(Path(a.target).resolve(), a.at, directories)
        asides = snapshots.restore(snapshot, directories, force=a.force)
    else:
        near = next(iter(directories.values())).root.parent
        with restic.fetched(repository, a.at or restic.latest(repository, directories), near) as snapshot:
            asides = snapshots.restore(snapshot, directories, force=a.force)
    for name, directory in directories.items():
        print(f"{name} are in {directory.root}" if name == "runs" else f"the server is in {directory.root}")
    for aside in asides:
        print(f"what was there is in {aside}")
    return 0


def _add_places(p: argparse.ArgumentParser) -> None:
    p.set_defaults(root=None)
    p.add_argument("target", metavar="DIR|restic:REPO", help="a directory, or a restic repository")
    p.add_argument("--server", type=Path, metavar="DIR", help="directory of `hpcexp serve`; without --root, only this")
    p.add_argument("--store", metavar="URI", help="its database, if not SQLite (default: MLFLOW_BACKEND_STORE_URI)")


def _directories(a: argparse.Namespace) -> dict[str, SnapshotDirectory]:
    """What is meant, by its name in a snapshot. The store is the server's, if there is one."""
    roots = {"server": a.server, "runs": a.root or (None if a.server else Path("runs"))}
    given = a.store or os.environ.get("MLFLOW_BACKEND_STORE_URI")
    directories = {}
    for name, root in roots.items():
        if root is not None:
            store = given if name == "server" or not a.server else None
            directories[name] = SnapshotDirectory(root.resolve(), resolve_uri(store, root.resolve(), {}))
    # Runs first: a store has at least what they have synced.
    return {name: directories[name] for name in ("runs", "server") if name in directories}


def _repository(target: str) -> str | None:
    return target.removeprefix(restic.PREFIX) if target.startswith(restic.PREFIX) else None


def _verify(target: str, repository: str | None, name: str | None) -> int:
    if repository is not None:
        restic.check(repository)
        print(f"{without_passwords(repository)}: unchanged")
        return 0
    is_damaged, problems = False, []
    for snapshot in snapshots.to_verify(Path(target).resolve(), name):
        try:
            manifest = load(snapshot)
        except RunError as e:
            problems.append(str(e))
            continue
        damaged = dict(damage(snapshot, manifest))
        is_damaged = is_damaged or bool(damaged)
        for file, why in damaged.items():
            print(f"{file}: {why}")
        print(f"{snapshot}: {len(damaged)} of {len(manifest.files)} files are damaged")
        if damaged:
            print(_renewal([snapshot / file for file in damaged]))
    if problems:
        raise RunError("\n\n".join(problems))
    return int(is_damaged)


def _renewal(damaged: list[Path]) -> str:
    """Have files copied anew by the next backup; what is said of that."""
    if [file for file in damaged if not disown(file)]:
        return "Fix: --verify as the owner of the snapshots, so that the next backup does not link to these."
    return "The next backup copies these again from their source."


def _tell_left_out(lacks: Mapping[str, str]) -> None:
    """All that the snapshot lacks. A link in a run may lead to anybody's files, so none is followed."""
    for path, why in sorted(lacks.items()):
        print(f"left out: {path!r}: {why}", file=sys.stderr)


def _summary(manifest: Manifest) -> str:
    kinds = [name + (" with PostgreSQL" if is_postgres(tree.store) else "") for name, tree in manifest.trees.items()]
    return f"{len(manifest.files)} files, {manifest.size / 1e6:.1f} MB ({', '.join(kinds)})"
