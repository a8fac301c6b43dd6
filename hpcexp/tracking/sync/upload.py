"""The upload of one run directory to MLflow: safe to interrupt anywhere and to repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Point, read_points
from hpcexp.runs.records.results import Summary, read_summary
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.runs.records.sync import Membership, SyncRecord
from hpcexp.text.key_names import KeyTable
from hpcexp.tracking.mlflow import description
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.links import artifact_root
from hpcexp.tracking.mlflow.renamed import by_key, renamed_of, report, text_of
from hpcexp.tracking.mlflow.store import Store, Stores
from hpcexp.tracking.sync import artifacts
from hpcexp.tracking.sync.destination import address
from hpcexp.tracking.sync.media_upload import MediaUpload
from hpcexp.tracking.sync.model_upload import is_uploaded, send_model
from hpcexp.tracking.sync.run_tags import RunTags
from hpcexp.tracking.sync.state import OFFSETS, SyncState, have_run

STATUS = {
    RunState.FINISHED: "FINISHED",
    RunState.PRUNED: "KILLED",
    RunState.FAILED: "FAILED",
    RunState.KILLED: "KILLED",
}
"""Final state → MLflow's status."""
MAX_POINTS = 1000
"""Steps whose metrics are sent in one go."""
_BATCH_BYTES = 256 << 10
"""About as many bytes of a journal."""


class RunUpload:
    """Sends what a run directory has and MLflow lacks, and stores its progress in `mlflow.json`.

    `sweep`: the sweep that the run belongs to from now on; None leaves it where it is.
    """

    def __init__(self, run: RunDir, plan: Plan, stores: Stores, sweep: Membership | None = None) -> None:
        self._run = run
        self._plan = plan
        self._stores = stores
        self.uri = address(run, plan)
        self._sync_state = SyncState(run.mlflow)
        self._tags = RunTags(run, plan, self._sync_state)
        self._media = MediaUpload(run, plan, self._sync_state)
        self._store: Store | None = None
        self._is_new = False
        """Whether this upload has made the MLflow run, which then has nothing yet."""
        self._keys = KeyTable()
        self._params: dict[str, str] = {}
        """Parameters that are yet to be sent."""
        if sweep is not None and self._known.sweep != sweep:
            self._sync_state.update(sweep=sweep, parent=None)

    @property
    def _known(self) -> SyncRecord:
        return self._sync_state.known

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has everything that the directory holds now, in its place below its sweep."""
        is_noted = self._sync_state.is_saved and self._known.pictured
        return is_noted and self._is_synced and self._tags.parent() in (None, self._known.parent)

    @property
    def is_behind(self) -> bool:
        """Whether the journals have far more than MLflow."""
        sent = self._known.offset + self._known.system_offset
        return sum(self._sizes) - sent > _BATCH_BYTES

    def start(self) -> Store:
        """Make or reopen the MLflow run, with its tags."""
        if self._store is not None:
            return self._store
        self._sync_state.update(tracking_uri=self._plan.tracking_uri, synced=False, pictured=False)
        store, parent = self._connected(), self._tags.parent()
        tags = self._tags.of_start(self._state, parent)
        started = read_status(self._run).started or time.time()
        experiment = str(self._plan.settings.tracking.experiment)
        self._is_new = have_run(self._sync_state, store, experiment, round(started * 1000), tags)
        run_id = self._sync_state.run_id
        if not self._is_new:
            store.log(run_id, tags=tags)
            if not self._state.is_final:
                store.set_running(run_id)
        self._sync_state.update(parent=parent)
        self._keys = KeyTable(self._known.keys)
        self._params = description.params(self._plan)
        self._log_dataset(store, run_id)
        self._store = store
        return store

    def send_metrics(self) -> bool:
        """Send the next metrics of the journals; whether there were any."""
        had_metrics = self._send({})
        had_media = self._media.send(self.start(), self._sync_state.run_id)
        if had_metrics or had_media:
            self._sync_state.save()
        return had_metrics or had_media

    def finish(self) -> None:
        """Send all the rest and, where the run has ended, its artifacts, model, description and status."""
        if self._is_synced and self._link():
            return
        state = self._state
        is_over = state.is_final
        summary = read_summary(self._run) if is_over else Summary()
        self._send(self._tags.of_end(state, summary) if is_over else {})
        self._sync_state.save()
        while self.send_metrics():
            pass
        if is_over:
            self._end(state, summary)

    def add_pictures(self) -> None:
        """Send the pictures, once everything else is sent."""
        if self._known.pictured:
            return
        store = self._connected()
        for picture in artifacts.files_in(self._run.plots, ".png"):
            key = self._media.place_of_ours(picture)
            artifacts.send_as(store, self._sync_state.run_id, self._run.path, picture, key)
        self._sync_state.save(pictured=True, problem=None)

    def failed(self, problem: str) -> None:
        """Store why MLflow refused something, and connect anew at the next try."""
        self._store = None
        self._stores.forget(self.uri)
        self._sync_state.save(problem=problem)

    @property
    def _state(self) -> RunState:
        return read_status(self._run).state

    @property
    def _journals(self) -> tuple[Path, ...]:
        """In the order of their `OFFSETS`."""
        return self._run.journal, self._run.system

    @property
    def _sizes(self) -> list[int]:
        """Of the journals, in bytes."""
        return [journal.stat().st_size if journal.exists() else 0 for journal in self._journals]

    @property
    def _is_synced(self) -> bool:
        """Whether MLflow has everything but the pictures."""
        is_noted = self._known.synced and self._known.state == self._state
        if not self._media.is_complete:
            return False
        return is_noted and self._sizes == [getattr(self._known, offset) for offset in OFFSETS]

    def _connected(self) -> Store:
        return self._stores.at(self.uri, artifact_root(Path(self._plan.run_dir).parent.parent))

    def _link(self) -> bool:
        """Put a synced run below its sweep; whether MLflow still has the run."""
        parent = self._tags.parent()
        if parent not in (None, self._known.parent):
            store, run_id = self._connected(), self._sync_state.run_id
            if not store.has_run(run_id):
                return False
            store.log(run_id, tags={**self._tags.of_sweep(parent), **self._tags.description(read_summary(self._run))})
            self._sync_state.update(parent=parent)
        self._sync_state.save()
        return True

    def _log_dataset(self, store: Store, run_id: str) -> None:
        if self._plan.data is not None:
            store.log_dataset(run_id, description.dataset(self._plan, self._plan.data))

    def _send(self, tags: Mapping[str, str]) -> bool:
        """Send the next metrics, with the parameters if they have not been and with `tags`; whether there were any."""
        store = self.start()
        points: list[Point] = []
        news: dict[str, int] = {}
        for name, journal in zip(OFFSETS, self._journals, strict=True):
            before = getattr(self._known, name)
            found, offset = read_points(journal, before, MAX_POINTS)
            points += found
            news |= {name: offset} if offset != before else {}
        if not (news or tags or self._params):
            return False
        sent = list(by_key(points, self._keys))
        store.log(self._sync_state.run_id, sent, self._params, {**tags, **self._renamed()})
        self._params = {}
        self._sync_state.update(**news, keys=dict(self._keys.keys))
        return bool(news)

    def _renamed(self) -> dict[str, str]:
        """The tag with all names that MLflow does not take, where there are others than before; the log says which."""
        found, before = renamed_of(self._plan, self._keys), self._known.renamed
        if found == before:
            return {}
        news = {kind: {n: k for n, k in found[kind].items() if n not in before.get(kind, {})} for kind in found}
        report(news)
        self._sync_state.update(renamed=found)
        return {names.RENAMED: text_of(found)}

    def _end(self, state: RunState, summary: Summary) -> None:
        store, run_id = self.start(), self._sync_state.run_id
        artifacts.send(store, run_id, self._run.path, _artifacts(self._run))
        store.log_text(run_id, "".join(f"{override}\n" for override in self._plan.overrides), "overrides.txt")
        if self._known.renamed:
            store.log_text(run_id, text_of(self._known.renamed), "renamed.json")
        if self._plan.settings.tracking.model != "never":
            small = [file for file in _checkpoints(self._run) if is_uploaded(file, self._plan)]
            artifacts.send(store, run_id, self._run.path, small)
        if self._tags.has_model:
            ids = {"run_id": run_id, "experiment_id": self._sync_state.experiment_id}
            model_id = send_model(
                store, self._run, self._plan, self._tags, summary, **ids, is_new=self._is_new, keys=self._keys
            )
            self._sync_state.update(model_id=model_id)
        store.log(run_id, tags=self._tags.description(summary))
        store.set_ended(run_id, STATUS[state], round(read_status(self._run).ended_at * 1000))
        self._sync_state.save(synced=True, problem=None, state=state)


def _checkpoints(run: RunDir) -> Iterator[Path]:
    """Those that users' callbacks have written below the run directory."""
    for file in artifacts.files_in(run.path, ".ckpt"):
        if file.parent != run.checkpoints:
            yield file


def _artifacts(run: RunDir) -> Iterator[Path]:
    """Files to keep with the MLflow run."""
    yield from (run.plan, run.summary, run.confusion)
    yield from artifacts.files_in(run.lineage)
    yield from (log for log in artifacts.files_in(run.logs, ".log") if log != run.logs / "sync.log")
