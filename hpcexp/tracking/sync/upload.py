"""Delivering one run directory to MLflow: safe to break off anywhere and to do again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from hpcexp.files.untrusted import UnusableFileError, sha256_of
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.journal import Point, last_values, read_points
from hpcexp.runs.records import Delivered, Membership, RunState, Summary, read_delivered, read_status, read_summary
from hpcexp.tracking.mlflow import description
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.links import artifact_root, page
from hpcexp.tracking.mlflow.store import MAX_DIGEST, Model, Store, Stores, legal_model_name
from hpcexp.tracking.sync import artifacts
from hpcexp.tracking.sync.destination import address
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
_MODEL_LIMIT_BYTES = 100_000_000
"""Up to this size `tracking.model=auto` uploads the best weights."""


class RunUpload:
    """Sends what the directory of a run has, and keeps in `mlflow.json` how far that is.

    `sweep`: the one that the run belongs to from now on; without, it stays where it is.
    """

    def __init__(self, run: RunDir, plan: Plan, stores: Stores, sweep: Membership | None = None) -> None:
        self._run = run
        self._plan = plan
        self._stores = stores
        self.uri = address(run, plan)
        self._note = SyncState(run.mlflow)
        self._store: Store | None = None
        self._is_new = False
        """Whether this delivery has made the MLflow run: then it has nothing yet."""
        self._params: dict[str, str] = {}
        """Those that are yet to be sent."""
        if sweep is not None and self._known.sweep != sweep:
            self._note.update(sweep=sweep, parent=None)

    @property
    def _known(self) -> Delivered:
        return self._note.known

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has everything that the directory holds now, in its place below its sweep."""
        is_noted = self._note.is_saved and self._known.pictured
        return is_noted and self._is_delivered and self._parent() in (None, self._known.parent)

    @property
    def is_behind(self) -> bool:
        """Whether the journals have far more than MLflow."""
        sent = self._known.offset + self._known.system_offset
        return sum(self._sizes) - sent > _BATCH_BYTES

    def start(self) -> Store:
        """Have the MLflow run, with its tags, new or going on."""
        if self._store is not None:
            return self._store
        self._note.update(tracking_uri=self._plan.tracking_uri, delivered=False, pictured=False)
        store, parent = self._connected(), self._parent()
        tags = self._tags(parent)
        started = read_status(self._run).started or time.time()
        experiment = str(self._plan.config["tracking"]["experiment"])
        self._is_new = have_run(self._note, store, experiment, round(started * 1000), tags)
        run_id = self._run_id
        if not self._is_new:
            store.log(run_id, tags=tags)
            if not self._state.is_final:
                store.set_running(run_id)
        self._note.update(parent=parent)
        self._params = description.params(self._plan)
        self._log_dataset(store, run_id)
        self._store = store
        return store

    def send_metrics(self) -> bool:
        """Send the next metrics of the journals; whether there were any."""
        if not self._send({}):
            return False
        self._note.save()
        return True

    def finish(self) -> None:
        """Send all the rest and, where the run has ended, its artifacts, model, description and status."""
        if self._is_delivered and self._link():
            return
        state = self._state
        is_over = state.is_final
        summary = read_summary(self._run) if is_over else Summary()
        self._send(self._final_tags(state, summary) if is_over else {})
        while self.send_metrics():
            pass
        if is_over:
            self._end(state, summary)

    def add_pictures(self) -> None:
        """Send the pictures of a run that is delivered."""
        if self._known.pictured:
            return
        store = self._connected()
        artifacts.send(store, self._run_id, self._run.path, artifacts.files_in(self._run.plots, ".png"))
        self._note.save(pictured=True, problem=None)

    def failed(self, problem: str) -> None:
        """Keep why MLflow did not take something, and connect anew at the next try."""
        self._store = None
        self._stores.forget(self.uri)
        self._note.save(problem=problem)

    @property
    def _run_id(self) -> str:
        """The MLflow run of a delivery that has started."""
        assert self._known.run_id is not None
        return self._known.run_id

    @property
    def _experiment_id(self) -> str:
        assert self._known.experiment_id is not None
        return self._known.experiment_id

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
    def _is_delivered(self) -> bool:
        """Whether MLflow has everything but the pictures."""
        is_noted = self._known.delivered and self._known.state == self._state
        return is_noted and self._sizes == [getattr(self._known, offset) for offset in OFFSETS]

    def _connected(self) -> Store:
        return self._stores.at(self.uri, artifact_root(Path(self._plan.run_dir).parent.parent))

    def _tags(self, parent: str | None) -> dict[str, str]:
        news = {**self._description(Summary()), names.STATE: self._state}
        return {**description.tags(self._plan), **news, **self._sweep_tags(parent)}

    def _description(self, summary: Summary) -> dict[str, str]:
        """The tag of what the run's page tells, with links to what belongs to the run."""
        links = {"Sweep": self._sweep_links(), "Model": self._model_link(), "Data": description.data_text(self._plan)}
        told = {what: text for what, text in links.items() if text}
        return {"mlflow.note.content": description.note(self._plan, summary.test, told)}

    def _sweep_links(self) -> str:
        """To the sweep and to the run's siblings; empty where the sweep is not in the same store."""
        if (parent := self._parent()) is None or self._known.sweep is None:
            return ""
        sweep = SweepDir(Path(self._known.sweep.path))
        experiment_id = read_delivered(sweep).experiment_id or ""
        link = f"[{sweep.path.name}]({page(experiment_id, run_id=parent)})"
        return f"{link} ({description.sweep_links(experiment_id, sweep.path.name)})"

    def _model_link(self) -> str:
        model_id = self._known.model_id
        if model_id is None:
            return ""
        return f"[{self._model_name}]({page(self._experiment_id, model_id=model_id)})"

    @property
    def _model_name(self) -> str:
        return legal_model_name(str(self._plan.config["tracking"]["experiment"]))

    def _sweep_tags(self, parent: str | None) -> dict[str, str]:
        """What puts the run below its sweep."""
        sweep = self._known.sweep
        return {} if sweep is None else description.sweep_tags(Path(sweep.path).name, sweep.axes, parent)

    def _parent(self) -> str | None:
        """The MLflow run of its sweep, where that is in the same store.

        None where the sweep's own record is damaged: delivering the sweep reports that, and its runs go without.
        """
        if (sweep := self._known.sweep) is None:
            return None
        try:
            above = read_delivered(SweepDir(Path(sweep.path)))
        except UnusableFileError:
            return self._known.parent
        return above.run_id if above.tracking_uri == self._plan.tracking_uri else None

    def _link(self) -> bool:
        """Have a delivered run below its sweep; whether MLflow still has the run."""
        parent = self._parent()
        if parent not in (None, self._known.parent):
            store, run_id = self._connected(), self._run_id
            if not store.has_run(run_id):
                return False
            store.log(run_id, tags={**self._sweep_tags(parent), **self._description(read_summary(self._run))})
            self._note.update(parent=parent)
        self._note.save()
        return True

    def _log_dataset(self, store: Store, run_id: str) -> None:
        if self._plan.data is not None:
            store.log_dataset(run_id, description.dataset(self._plan, self._plan.data))

    @property
    def _dataset(self) -> tuple[str, str] | None:
        """Name and digest of the data, where planning knew them."""
        facts = self._plan.data
        return None if facts is None else (self._plan.choices.get("data", "data"), facts.fingerprint[:MAX_DIGEST])

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
        store.log(self._run_id, points, self._params, tags)
        self._params = {}
        self._note.update(**news)
        return bool(news)

    def _end(self, state: RunState, summary: Summary) -> None:
        store, run_id = self.start(), self._run_id
        artifacts.send(store, run_id, self._run.path, _artifacts(self._run))
        store.log_text(run_id, "".join(f"{override}\n" for override in self._plan.overrides), "overrides.txt")
        if self._has_model:
            self._log_model(store, summary)
        store.log(run_id, tags=self._description(summary))
        store.set_ended(run_id, STATUS[state], round(read_status(self._run).ended_at * 1000))
        self._note.save(delivered=True, problem=None, state=state)

    @property
    def _has_model(self) -> bool:
        return self._plan.config["tracking"]["model"] != "never" and artifacts.is_there(self._run.path, self._run.best)

    def _log_model(self, store: Store, summary: Summary) -> None:
        checkpoint, wanted = self._run.best, self._plan.config["tracking"]["model"]
        is_sent = wanted == "always" or checkpoint.stat().st_size <= _MODEL_LIMIT_BYTES
        results = tuple(last_values(self._run.journal, "val", "test"))
        run_id, experiment_id = self._run_id, self._experiment_id
        link = f"[{self._plan.name}]({page(experiment_id, run_id=run_id)})"
        note = description.model_note(self._plan, summary.best, link, str(checkpoint.absolute()))
        tags = {**self._model_tags(summary), "mlflow.note.content": note}
        model = Model(self._model_name, description.params(self._plan), tags, results, self._dataset)
        model_id = store.model(run_id, experiment_id, model, is_new=self._is_new)
        with ExitStack() as stack:
            files = (checkpoint, self._run.plan) if is_sent else ()
            paths = [stack.enter_context(artifacts.handed(self._run.path, file, artifacts.NO_LIMIT)) for file in files]
            store.fill_model(run_id, model_id, model, filter(None, paths))
        self._note.update(model_id=model_id)

    def _model_tags(self, summary: Summary) -> dict[str, str]:
        """Where the best weights lie, and their digest."""
        checkpoint = self._run.best
        digest = (summary.best and summary.best.sha256) or sha256_of(checkpoint)
        return {names.CHECKPOINT: str(checkpoint.absolute()), names.CHECKPOINT_SHA256: digest}

    def _final_tags(self, state: RunState, summary: Summary) -> dict[str, str]:
        cause = read_status(self._run).cause
        tags = {names.STATE: state, **description.best_tags(summary), **({names.CAUSE: cause} if cause else {})}
        if RunState.PRUNED in (state, self._known.state):  # it may have resumed since
            tags[names.PRUNED] = str(state is RunState.PRUNED).lower()
        if summary.world_size is not None:  # as measured, which replaces the planned one
            tags[names.WORLD_SIZE] = str(summary.world_size)
        tags |= description.lineage_tags(self._run.lineage)
        return tags | (self._model_tags(summary) if self._has_model else {})


def _artifacts(run: RunDir) -> Iterator[Path]:
    """Files to keep with the MLflow run."""
    yield from (run.plan, run.summary, run.confusion)
    yield from artifacts.files_in(run.lineage)
    yield from (log for log in artifacts.files_in(run.logs, ".log") if log != run.logs / "shipper.log")
