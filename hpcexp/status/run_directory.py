"""Where a run is stored: in the directory of its identity, under whatever name, or in a new one."""

from __future__ import annotations

from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.memo import Once
from hpcexp.plan import load_signature
from hpcexp.rundir import RunDir
from hpcexp.runs.naming import SIGNATURE_LENGTH


def run_directory(parent: Path, name: str, identity: str, once: Once) -> Path:
    """The run's directory: where this identity has run before, under whatever name, or a new one."""
    ending = identity[:SIGNATURE_LENGTH]
    for found in once(("runs", parent), lambda: _by_ending(parent)).get(ending, []):
        if (found / "plan.yaml").exists() and _is_of(RunDir(found), identity):
            return found
    return parent / name


def _is_of(run: RunDir, identity: str) -> bool:
    try:
        return load_signature(run.plan) == identity
    except RunError:
        return True  # damaged: its name says so, and whoever starts it reports the damage


def _by_ending(parent: Path) -> dict[str, list[Path]]:
    """Directories in `parent`, in order, by what follows the last hyphen in their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(parent.glob("*-*")):
        found.setdefault(path.name.rpartition("-")[2], []).append(path)
    return found
