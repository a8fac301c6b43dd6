"""Which files of checkpoints stay: those that `last` or `previous` refer to."""

from __future__ import annotations

import shutil

from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_note


def drop_unreferenced(run: RunDir) -> None:
    """Delete best weights and shards that neither of the two checkpoints refers to."""
    notes = map(read_note, (run.last, run.previous))
    kept = {run.best_of(note.best) for note in notes if note and note.best is not None}
    for path in set(run.checkpoints.glob("best-*.ckpt")) - kept:
        path.unlink(missing_ok=True)
    drop_unreferenced_shards(run)


def drop_unreferenced_shards(run: RunDir) -> None:
    """Delete shards alone."""
    notes = map(read_note, (run.last, run.previous))
    kept = {name.partition("/")[0] for note in notes if note for name in note.beside}
    for directory in run.checkpoints.glob("shards-*"):
        if directory.name not in kept:
            shutil.rmtree(directory, ignore_errors=True)
