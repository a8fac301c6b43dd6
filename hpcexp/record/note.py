"""What a directory remembers of its MLflow run, in `mlflow.json`: enough to go on after any crash with the same run."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcexp.record.store import Store
from hpcexp.rundir import read_json, write_json

OFFSETS = ("offset", "system_offset")
"""How far a run's journals have been sent: that of its metrics, and that of its machine."""


class Note(dict[str, Any]):
    """The content of an `mlflow.json`, to be changed at will and saved now and then."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_json(path))
        self._path = path
        self._saved = dict(self)

    @property
    def is_saved(self) -> bool:
        """Whether the file says the same."""
        return self == self._saved

    def save(self, **news: Any) -> None:
        """Take `news`, and write the file if that changes anything in it."""
        self.update(news)
        if not self.is_saved:
            write_json(self._path, self)
            self._saved = dict(self)

    def forget_offsets(self) -> None:
        """Have all journals sent from their beginning."""
        for offset in OFFSETS:
            self.pop(offset, None)


def have_run(note: Note, store: Store, experiment: str, start_ms: int, tags: Mapping[str, str]) -> bool:
    """Have the noted run in MLflow, the same one however often this is broken off; whether it was made just now.

    It carries a token that stands in the note before: so one is found again whose id was not noted any more. One that
    is gone from MLflow is made anew, and nothing has been sent to it.
    """
    known = note.get("run_id")
    if known is not None and store.has_run(known):
        return False
    is_first = known is not None or "token" not in note
    if is_first:
        note.forget_offsets()
        note.save(token=uuid.uuid4().hex, run_id=None)
    experiment_id = store.experiment(experiment)
    found = None if is_first else store.find_run(experiment_id, "hpcexp.token", note["token"])
    run_id = found or store.create_run(
        experiment_id, tags["mlflow.runName"], start_ms, {"hpcexp.token": note["token"], **tags}
    )
    note.forget_offsets()
    note.save(experiment_id=experiment_id, run_id=run_id)
    return found is None
