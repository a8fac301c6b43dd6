"""Snapshots in a restic repository: deduplicated, encrypted, on any storage that restic knows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

from hpcexp.backup.manifest import Manifest
from hpcexp.backup.snapshots import KINDS, SnapshotDirectory, check_apart, choice, write_snapshot
from hpcexp.errors import RunError
from hpcexp.files.documents import Count, decode
from hpcexp.files.locks import held
from hpcexp.files.untrusted import name_problem
from hpcexp.redaction import without_passwords

PREFIX = "restic:"
_TAG = "hpcexp"
"""Of all snapshots; a further one names the trees of each."""


class _Node(Struct):
    """A line of `restic ls --json`."""

    path: str | None = None
    type: str = ""
    size: Count = 0


def backup(repository: str, directories: Mapping[str, SnapshotDirectory], left_out: dict[str, str]) -> Manifest:
    """A new snapshot. It lies beside the runs for that time, by links where these can be.

    `left_out` gets what it lacks, and why.
    """
    if (local := _directory(repository)) is not None:
        check_apart(local, directories)
    stage = next(iter(directories.values())).stage
    with held(stage.with_name(".backup.lock"), "runs are being backed up by"):
        shutil.rmtree(stage, ignore_errors=True)
        try:
            manifest = write_snapshot(stage, directories, left_out=left_out, links=True)
            # Links change the time of an inode's last change, not of its content.
            _restic(repository, "backup", "--tag", _tags(directories), "--ignore-ctime", ".", cwd=stage)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return manifest


def forget(repository: str, trees: Collection[str], keep: int) -> None:
    """Remove all but the latest `keep` snapshots with these trees, of each machine and directory."""
    _restic(repository, "forget", "--tag", _tags(trees), "--keep-last", str(keep), "--prune")


def latest(repository: str, wanted: Collection[str]) -> str:
    """The name of the latest snapshot that has these trees; RunError where there is none."""
    listed = json.loads(_restic(repository, "snapshots", "--json", "--tag", _TAG))
    by_time = sorted(listed, key=lambda snapshot: datetime.fromisoformat(snapshot["time"]))
    found = {s["short_id"]: {kind for tag in s["tags"] for kind in tag.split("+")} & {*KINDS} for s in by_time}
    return choice(repository, found, None, wanted)


def check(repository: str) -> None:
    """Read everything and compare it with its checksums; RunError where something is damaged."""
    _restic(repository, "check", "--read-data")


@contextmanager
def fetched(repository: str, name: str, near: Path) -> Iterator[Path]:
    """A snapshot as a directory on the file system of `near`, for a while."""
    near = next(folder for folder in (near, *near.parents) if folder.is_dir())
    _check_content(repository, name, shutil.disk_usage(near).free)
    with TemporaryDirectory(prefix=".restic-", dir=near) as directory:
        _restic(repository, "restore", name, "--target", directory)
        yield Path(directory)


def _check_content(repository: str, name: str, free: int) -> None:
    """RunError where a snapshot has what restic would bring back and nobody wants, before it brings it back."""
    size = 0
    for line in _restic(repository, "ls", "--json", name).splitlines():
        node = decode(line, _Node)
        if node.path is None:
            continue  # of the snapshot itself
        why = name_problem(node.path.removeprefix("/"))
        if why is None and node.type not in ("file", "dir"):
            why = f"it is a {node.type}"
        if why is not None:
            raise RunError(
                f"The snapshot {name} has {node.path!r}, which is refused: {why}. Nothing was changed.\n"
                "Fix: another one by --at NAME; `hpcexp backup` makes none with it."
            )
        size += node.size
    if size > free:
        raise RunError(
            f"The snapshot {name} has {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free. Nothing was changed.\n"
            "Fix: make room, or another directory."
        )


def _directory(repository: str) -> Path | None:
    """Where it is on this machine; None where it is elsewhere."""
    path = repository.removeprefix("local:")
    return None if re.match(r"[a-z0-9]+:", path) else Path(path).resolve()


def _tags(trees: Collection[str]) -> str:
    return f"{_TAG},{'+'.join(sorted(trees))}"


def _restic(repository: str, *arguments: str, cwd: Path | None = None) -> str:
    program = shutil.which("restic")
    if program is None:
        raise RunError("restic is not installed.\nFix: apt-get install restic, or a directory instead of restic:…")
    # Its address may have a password, and everybody may read a command line.
    env = {**os.environ, "RESTIC_REPOSITORY": repository}
    env.pop("RESTIC_REPOSITORY_FILE", None)
    command = [program, "--quiet", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = " ".join(without_passwords(done.stderr).split()) or f"it ended with {done.returncode}"
        shown = without_passwords(repository)
        raise RunError(
            f"restic {arguments[0]}: {why}\n"
            f"Fix: RESTIC_PASSWORD_FILE in the environment, and once `restic init --repo {shown}`."
        )
    return done.stdout
