"""Whether results can be written where they are to go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LEAST_FREE_MB = 50


def root_problems(root: Path) -> list[str]:
    """Why a run directory below `root` could not be written."""
    existing = root
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [f"run.root={root}: {existing} is a file, not a directory.\nFix: run.root=… in another directory."]
    disk = shutil.disk_usage(existing)
    if not os.access(existing, os.W_OK | os.X_OK) or disk.total == 0:
        return [f"run.root={root}: {existing} cannot be written to.\nFix: run.root=… where you may write."]
    free_mb = disk.free // 2**20
    if free_mb < LEAST_FREE_MB:
        return [
            f"run.root={root}: only {free_mb} MB are free in {existing}.\nFix: free space, or run.root=… elsewhere."
        ]
    return []
