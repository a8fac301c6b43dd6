"""Delivering one run directory to MLflow: safe to break off anywhere and to do again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcexp.checks.values import typed
from hpcexp.plan import Plan
from hpcexp.record import describe
from hpcexp.record.journal import Point, read_points
from hpcexp.record.store import MAX_METRICS, Store, connect
from hpcexp.record.ui import artifact_root
from hpcexp.rundir import FINAL_STATES, RunDir, read_json, sha256, write_json

_STATUS = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "killed": "KILLED"}
_MODEL_LIMIT_BYTES = 100_000_000
"""Up to this size `tracking.model=auto` uploads the best weights."""


class Delivery:
    """Sends what the directory of a run has, and keeps in `mlflow.json` how far that is."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._uri = run.secret_uri.read_text().strip() if run.secret_uri.exists() else plan.tracking_uri or ""
        self._note: dict[str, Any] = read_json(run.mlflow)
        self._store: Store | None = None

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has everything that the directory holds now."""
        size = self._run.journal.stat().st_size if self._run.journal.exists() else 0
        state = self._run.read_status().get("state")
        return (
            bool(self._note.get("delivered")) and self._note.get("offset") == size and self._note.get("state") == state
        )

    def start(self) -> Store:
        """Have the MLflow run, with its parameters and tags, new or going on."""
        if self._store is not None:
            return self._store
        token = self._note.get("token") or uuid.uuid4().hex
        self._remember(tracking_uri=self._plan.tracking_uri, delivered=False, token=token)
        store = connect(self._uri, artifact_root(Path(self._plan.run_dir).parent.parent))
        known = self._note.get("run_id")
        if known is None or not store.has_run(known):
            self._create(store, lost=known is not None)
        run_id = self._note["run_id"]
        store.log_params(run_id, describe.params(self._plan))
        store.set_tags(run_id, {**describe.tags(self._plan), "mlflow.note.content": describe.note(self._plan, {})})
        self._log_dataset(store, run_id)
        if self._state not in FINAL_STATES:
            store.set_running(run_id)
        self._store = store
        return store

    def send_metrics(self) -> bool:
        """Send the next metrics of the journal; whether there were any."""
        store = self.start()
        before = self._note.get("offset", 0)
        points, offset = read_points(self._run.journal, before, MAX_METRICS)
        if offset == before:
            return False
        store.log_points(self._note["run_id"], points)
        self._remember(offset=offset)
        return True

    def finish(self) -> None:
        """Send all the rest and, where the run has ended, its artifacts, model, description and status."""
        while self.send_metrics():
            pass
        state = self._state
        if state not in FINAL_STATES:
            return
        store, run_id = self.start(), self._note["run_id"]
        summary = read_json(self._run.summary)
        for file, folder in _artifacts(self._run):
            store.log_artifact(run_id, file, folder)
        store.log_text(run_id, "".join(f"{override}\n" for override in self._plan.overrides), "overrides.txt")
        self._log_model(store, summary)
        store.set_tags(run_id, self._final_tags(summary))
        ended = self._run.read_status().get("ended") or time.time()
        store.set_ended(run_id, _STATUS[state], round(ended * 1000))
        self._remember(delivered=True, problem=None, state=state)

    def failed(self, problem: str) -> None:
        """Keep why MLflow did not take something, and connect anew at the next try."""
        self._store = None
        self._remember(delivered=False, problem=problem)

    @property
    def _state(self) -> str:
        return str(self._run.read_status().get("state", ""))

    def _create(self, store: Store, lost: bool) -> None:
        """A run that is gone from MLflow is made anew and gets the whole journal."""
        token = uuid.uuid4().hex if lost else self._note["token"]
        self._remember(token=token, offset=0, run_id=None)
        experiment_id = store.experiment(str(self._plan.config["tracking"]["experiment"]))
        started = self._run.read_status().get("started") or time.time()
        tags = {"mlflow.user": str(self._plan.lineage.get("user", ""))}
        run_id = store.run(experiment_id, token, self._plan.name, round(started * 1000), tags)
        self._remember(experiment_id=experiment_id, run_id=run_id)

    def _log_dataset(self, store: Store, run_id: str) -> None:
        if self._plan.data is not None:
            source = typed(describe.flatten(self._plan.config.get("data", {})))
            store.log_dataset(run_id, self._plan.choices.get("data", "data"), self._plan.data.fingerprint, source)

    def _log_model(self, store: Store, summary: dict[str, Any]) -> None:
        wanted = self._plan.config["tracking"]["model"]
        checkpoint = self._run.best
        if wanted == "never" or not checkpoint.exists():
            return
        run_id = self._note["run_id"]
        uploads = wanted == "always" or checkpoint.stat().st_size <= _MODEL_LIMIT_BYTES
        digest = summary.get("best", {}).get("sha256") or sha256(checkpoint)
        tags = {"hpcexp.checkpoint": str(checkpoint.absolute()), "hpcexp.checkpoint.sha256": digest}
        results = _last_results(self._run.journal)
        step = max((point.step for point in results), default=0)
        name = str(self._plan.config["tracking"]["experiment"])
        model_id = store.model(run_id, name, describe.params(self._plan), step)
        store.fill_model(run_id, model_id, [checkpoint, self._run.plan] if uploads else [], tags, results)
        store.set_tags(run_id, tags)
        self._remember(model_id=model_id)

    def _final_tags(self, summary: dict[str, Any]) -> dict[str, str]:
        cause = self._run.read_status().get("cause")
        note = describe.note(self._plan, describe.final_metrics(summary))
        tags = {"mlflow.note.content": note, **({"hpcexp.cause": str(cause)} if cause else {})}
        if "pruned" in (self._state, self._note.get("state")):  # it may have been gone on with since
            tags["hpcexp.pruned"] = str(self._state == "pruned").lower()
        if "world_size" in summary:  # as measured, in the place of the planned one
            tags["hpcexp.world_size"] = str(summary["world_size"])
        return tags

    def _remember(self, **news: Any) -> None:
        """Change `mlflow.json`, if that changes anything."""
        note = {**self._note, **news}
        if note != self._note:
            self._note = note
            write_json(self._run.mlflow, note)


def _artifacts(run: RunDir) -> Iterator[tuple[Path, str | None]]:
    """Files to keep with the MLflow run, each with its folder there."""
    for file in (run.plan, run.summary, run.confusion):
        if file.exists():
            yield file, None
    for folder in (run.plots, run.logs):
        for file in sorted(folder.glob("*")):
            if file.suffix in (".png", ".log") and file.name != "shipper.log":
                yield file, folder.name


def _last_results(journal: Path) -> list[Point]:
    """The last value of each validation and test metric, at its own step and time: the same row as the run's."""
    last: dict[str, Point] = {}
    points, offset = read_points(journal, 0, 10_000)
    while points:
        for point in points:
            for key, value in point.metrics.items():
                if key.startswith(("val/", "test/")):
                    last[key] = Point(point.time_ms, point.step, {key: value})
        points, offset = read_points(journal, offset, 10_000)
    return list(last.values())
