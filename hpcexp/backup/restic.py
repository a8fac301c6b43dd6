"""Snapshots in a restic repository: deduplicated, encrypted, on any storage that restic knows."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hpcexp.backup.manifest import Manifest
from hpcexp.backup.snapshots import Place, write_snapshot
from hpcexp.errors import RunError
from hpcexp.rundir import held

PREFIX = "restic:"
_TAG = ("--tag", "hpcexp")


def backup(repository: str, places: Mapping[str, Place]) -> Manifest:
    """A new snapshot. It lies beside the runs for that time, by links where these can be."""
    stage = next(iter(places.values())).stage
    with held(stage.with_name(".backup.lock"), "runs are being backed up by"):
        shutil.rmtree(stage, ignore_errors=True)
        try:
            manifest = write_snapshot(stage, places, links=True)
            # Links change the time of an inode's last change, not of its content.
            _restic(repository, "backup", *_TAG, "--ignore-ctime", ".", cwd=stage)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return manifest


def forget(repository: str, keep: int) -> None:
    """Remove all but the latest `keep` snapshots."""
    _restic(repository, "forget", *_TAG, "--keep-last", str(keep), "--prune")


def check(repository: str) -> None:
    """Read everything and compare it with its checksums; RunError where something is damaged."""
    _restic(repository, "check", "--read-data")


@contextmanager
def fetched(repository: str, name: str | None, near: Path) -> Iterator[Path]:
    """A snapshot, or the latest, as a directory on the file system of `near`, for a while."""
    near.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".restic-", dir=near) as place:
        _restic(repository, "restore", name or "latest", *(() if name else _TAG), "--target", place)
        yield Path(place)


def _restic(repository: str, *arguments: str, cwd: Path | None = None) -> None:
    program = shutil.which("restic")
    if program is None:
        raise RunError("restic is not installed.\nFix: apt-get install restic, or a directory instead of restic:…")
    command = [program, "--repo", repository, "--quiet", *arguments]
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise RunError(
            f"restic {arguments[0]}: {why}\n"
            f"Fix: RESTIC_PASSWORD_FILE in the environment, and once `restic init --repo {repository}`."
        )
