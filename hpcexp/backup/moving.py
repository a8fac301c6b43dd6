"""Paths in restored files, changed to where the files are now."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from hpcexp.backup import databases
from hpcexp.backup.manifest import Tree
from hpcexp.errors import RunError
from hpcexp.files.untrusted import regular_files
from hpcexp.plan import load_plan
from hpcexp.redaction import without_password
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.records.sweep import MAX_LEDGER_BYTES
from hpcexp.tracking.mlflow.links import artifact_root
from hpcexp.tracking.sync.destination import address, send_to

STORE_FILE = "mlflow.db"
_MOVED = ("mlflow.json", "jobs.jsonl", "sweep.json", "best.json", "table.csv", ".tracking")
"""Files of runs and sweeps that name where these lie. A run's plan is sealed, and stays as it is."""


def move(stage: Path, tree: Tree, root: Path, store: str) -> None:
    """Let runs and sweeps, and MLflow's tables in SQLite, name the directories where they are now."""
    pairs = [(tree.root, str(root))]
    if databases.is_postgres(store):
        pairs.append((tree.store, without_password(store)))
    changes = [(old, new) for old, new in pairs if old != new]
    if not changes:
        return
    for run in find_runs(stage):
        _redirect(run, changes, store)
    for file in regular_files(stage):
        is_redirected = file.name == ".tracking" and file.with_name("plan.yaml").exists()
        if file.name in _MOVED and file.stat().st_size <= MAX_LEDGER_BYTES and not is_redirected:
            _replace(file, changes, store)
    if (stage / STORE_FILE).exists():
        move_artifacts(f"sqlite:///{stage / STORE_FILE}", tree, root)


def _redirect(run: RunDir, changes: list[tuple[str, str]], store: str) -> None:
    """Have the run go to the database that was restored, where it went to the one that was kept."""
    with suppress(RunError, ValueError):  # damaged, which is reported where it is read
        uri = address(run, load_plan(run.plan))
        if (moved := _moved_uri(uri, changes, store)) != uri:
            send_to(run, moved)


def _moved_uri(uri: str, changes: list[tuple[str, str]], store: str) -> str:
    return store if without_password(uri) in [old for old, _ in changes] else _moved(uri, changes)


def _moved(text: str, changes: list[tuple[str, str]]) -> str:
    for old, new in changes:
        text = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w.-])", new.replace("\\", r"\\"), text)
    return text


def _replace(file: Path, changes: list[tuple[str, str]], store: str) -> None:
    text, times = file.read_text(errors="surrogateescape"), file.stat()
    if file.name == ".tracking":
        uri, *rest = text.splitlines() or [""]
        new = "\n".join([_moved_uri(uri, changes, store), *rest, ""])
    else:
        new = _moved(text, changes)
    if new != text:
        file.write_text(new, errors="surrogateescape")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def move_artifacts(uri: str, tree: Tree, root: Path) -> None:
    """Let the tables of the database `uri` name the directory in which uploads lie below `root`."""
    old, new = (artifact_root(Path(directory)).as_uri() for directory in (tree.root, root))
    if old != new:
        databases.move_locations(uri, old, new)
