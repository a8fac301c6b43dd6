"""What a directory remembers of its MLflow run, in `mlflow.json`: enough to resume the same run after any crash."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from hpcexp.runs.records.files import read, write
from hpcexp.runs.records.sync import SyncRecord
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.store import Store

OFFSETS = ("offset", "system_offset")
"""How far a run's journals have been sent: that of its metrics, and that of its machine."""


class SyncState:
    """The content of an `mlflow.json`, changed in memory and saved now and then."""

    def __init__(self, path: Path) -> None:
        """UnusableFileError where the file is damaged."""
        self._path = path
        self.known = read(path, SyncRecord)
        self._saved = copy(self.known)

    @property
    def run_id(self) -> str:
        """The MLflow run of a sync that has started."""
        assert self.known.run_id is not None
        return self.known.run_id

    @property
    def experiment_id(self) -> str:
        """The MLflow experiment of a sync that has started."""
        assert self.known.experiment_id is not None
        return self.known.experiment_id

    @property
    def is_saved(self) -> bool:
        """Whether the file has the same content."""
        return self.known == self._saved

    def save(self, **news: Any) -> None:
        """Take `news`, and write the file if that changes anything in it."""
        self.update(**news)
        if not self.is_saved:
            write(self._path, self.known)
            self._saved = copy(self.known)

    def update(self, **news: Any) -> None:
        """Take `news`, to be saved later."""
        for name, value in news.items():
            setattr(self.known, name, value)

    def clear(self) -> None:
        """Know nothing any more."""
        self.known = SyncRecord()

    def forget_sent(self) -> None:
        """Have all journals sent from their beginning."""
        self.update(**dict.fromkeys(OFFSETS, 0), keys={}, renamed={}, media={})


def have_run(state: SyncState, store: Store, experiment: str, start_ms: int, tags: Mapping[str, str]) -> bool:
    """Have the noted run in MLflow, the same one however often this is broken off; whether it was made just now.

    It carries a token that is noted before it is made, so it is found again if its id was not noted any more. One that
    is gone from MLflow is made anew, and nothing has been sent to it.
    """
    known, token = state.known.run_id, state.known.token
    if known is not None and store.has_run(known):
        return False
    is_first = known is not None or token is None
    if is_first or token is None:
        token = uuid.uuid4().hex
        state.forget_sent()
        state.save(token=token, run_id=None)
    experiment_id = store.experiment(experiment)
    found = None if is_first else store.find_run(experiment_id, names.TOKEN, token)
    run_id = found or store.create_run(experiment_id, tags["mlflow.runName"], start_ms, {names.TOKEN: token, **tags})
    state.forget_sent()
    state.save(experiment_id=experiment_id, run_id=run_id)
    return found is None
