"""Whether results can be written where they are to go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LEAST_FREE_MB = 50


def root_problems(root: Path) -> list[str]:
    """Why a run directory below `root` could not be written."""
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"run.root={root}: {place} is a file, not a directory.\nFix: run.root=… in another place."]
    disk = shutil.disk_usage(place)
    if not os.access(place, os.W_OK | os.X_OK) or disk.total == 0:
        return [f"run.root={root}: {place} cannot be written to.\nFix: run.root=… where you may write."]
    free_mb = disk.free // 2**20
    if free_mb < LEAST_FREE_MB:
        return [
            f"run.root={root}: only {free_mb} MB are free in {place}.\nFix: free some space, or run.root=… elsewhere."
        ]
    return []
