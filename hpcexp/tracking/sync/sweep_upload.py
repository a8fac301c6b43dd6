"""The MLflow run of a sweep, above those of its jobs: its question and axes, and in the end its answer."""

from __future__ import annotations

import csv
import io
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.documents import read_json
from hpcexp.files.untrusted import UnusableFileError, read_text
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.journal import Point
from hpcexp.runs.records.files import lines, read_or_none
from hpcexp.runs.records.status import Status, read_status
from hpcexp.runs.records.sweep import MAX_LEDGER_BYTES, LedgerLine, SweepBest, SweepRecord
from hpcexp.runs.records.sync import Membership, SyncRecord, read_sync_record
from hpcexp.text.key_names import keyed
from hpcexp.tracking.mlflow import description
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.links import artifact_root, page
from hpcexp.tracking.mlflow.store import Store, Stores, problem_of
from hpcexp.tracking.mlflow.views import sweep_view
from hpcexp.tracking.sync import artifacts
from hpcexp.tracking.sync.state import SyncState, have_run
from hpcexp.tracking.sync.upload import STATUS


class SweepUpload:
    """Sends what the directory of a sweep has. It goes where the sweep's runs go."""

    def __init__(self, sweep: SweepDir, stores: Stores) -> None:
        self._sweep = sweep
        self._stores = stores
        self._sync_state = SyncState(sweep.mlflow)
        self._store: Store | None = None
        self.was_remade = False
        """Whether the MLflow run was gone, and its children are below none."""

    @property
    def _known(self) -> SyncRecord:
        return self._sync_state.known

    def _asked(self) -> SweepRecord:
        return read_json(self._sweep.definition, SweepRecord)

    @property
    def uri(self) -> str | None:
        """Where it goes; None before any of its runs has said that."""
        try:
            return read_text(self._sweep.secret_uri).strip()
        except FileNotFoundError:
            return self._known.tracking_uri

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None where there is none yet."""
        return self._known.run_id

    @property
    def is_started(self) -> bool:
        """Whether this process has the MLflow run, new or resumed."""
        return self._store is not None

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has the sweep as its directory holds it now."""
        status, known = read_status(self._sweep), self._known
        return (known.synced, known.state, known.ended) == (True, status.state, status.ended)

    def go_with(self, plan: Plan, uri: str, *, is_redirected: bool = False) -> None:
        """Go where this run of the sweep goes: to `uri`, with its password, and into the experiment of the first.

        Of one that `is_redirected` into its experiment.
        """
        if uri == plan.tracking_uri:
            self._sweep.secret_uri.unlink(missing_ok=True)
        elif uri != self.uri:
            write_atomic(self._sweep.secret_uri, f"{uri}\n", mode=0o600)
        experiment, user = str(plan.settings.tracking.experiment), str(plan.lineage.get("user", ""))
        is_elsewhere = is_redirected and self._known.experiment != experiment
        if is_elsewhere or self._known.tracking_uri != plan.tracking_uri:
            self._sync_state.clear()
            self._sync_state.save(tracking_uri=plan.tracking_uri, experiment=experiment, user=user)

    def start(self) -> Store:
        """Have the MLflow run, with what is asked; RunError where the sweep's directory is gone."""
        if self._store is not None:
            return self._store
        if not self._sweep.path.is_dir():
            raise RunError(f"{self._sweep.path} is gone")
        status, overrides, uri = read_status(self._sweep), self._asked(), self.uri
        assert uri is not None
        self._sync_state.update(synced=False)
        store = self._stores.at(uri, artifact_root(self._sweep.path.parent.parent))
        started = round((status.started or time.time()) * 1000)
        tags = {**self._tags(), names.STATE: str(status.state)}
        before = self._known.run_id
        is_new = have_run(self._sync_state, store, str(self._known.experiment), started, tags)
        self.was_remade = is_new and before is not None
        # MLflow changes no parameter: of axes that were edited the description tells.
        known = {} if is_new else store.params(self._sync_state.run_id) or {}
        params = {key: text for key, text in keyed(description.sweep_params(overrides)).items() if key not in known}
        described = {"mlflow.note.content": self._description(overrides, None, "")}
        store.log(self._sync_state.run_id, params=params, tags=described if is_new else {**tags, **described})
        self._save_view(store, overrides, started)
        if not is_new and not status.state.is_final:
            store.set_running(self._sync_state.run_id)
        self._store = store
        return store

    def finish(self) -> None:
        """Send the answer and the status of a sweep that has ended."""
        status = read_status(self._sweep)
        state = status.state
        if not state.is_final or self.is_complete:
            return
        store, run_id = self.start(), self._sync_state.run_id
        ended_ms = round(status.ended_at * 1000)
        best = read_or_none(self._sweep.best, SweepBest)
        results = Point(ended_ms, 0, keyed({**_best_metrics(best), **_job_counts(self._sweep.table_csv)}))
        store.log(run_id, [results], tags=self._final_tags(status, best))
        artifacts.send(store, run_id, self._sweep.path, _artifacts(self._sweep))
        store.set_ended(run_id, STATUS[state], ended_ms)
        self._sync_state.save(synced=True, problem=None, state=state, ended=status.ended)

    def failed(self, error: Exception) -> str:
        """Keep why MLflow did not take something, and connect anew at the next try; the same in words."""
        problem = problem_of(error, self._known.tracking_uri or "")
        self._store = None
        if self.uri is not None:
            self._stores.forget(self.uri)
        if self._sweep.path.is_dir():
            self._sync_state.save(problem=problem)
        return problem

    def _save_view(self, store: Store, overrides: SweepRecord, now_ms: int) -> None:
        """Have the sweep in the experiment's menu of views."""
        view = sweep_view(overrides, self._sweep.path.name, self._sync_state.run_id, now_ms)
        store.tag_experiment(self._sync_state.experiment_id, view)

    def _tags(self) -> dict[str, str]:
        name, overrides = self._sweep.path.name, self._asked()
        known = {"mlflow.user": self._known.user, "mlflow.source.name": overrides.command}
        return {
            **{key: str(value) for key, value in known.items() if value},
            "mlflow.source.type": "LOCAL",
            "mlflow.runName": name,
            names.SWEEP: name,
            names.SWEEP_DIR: str(self._sweep.path),
            names.OBJECTIVES: ", ".join(f"{o.metric} {o.mode}" for o in overrides.objectives),
        }

    def _final_tags(self, status: Status, best: SweepBest | None) -> dict[str, str]:
        try:
            table = read_text(self._sweep.table_md)
        except FileNotFoundError:
            table = ""
        note = self._description(self._asked(), best, table)
        cause = {names.CAUSE: status.cause} if status.cause else {}
        return {"mlflow.note.content": note, names.STATE: str(status.state), **cause}

    def _description(self, overrides: SweepRecord, best: SweepBest | None, table: str) -> str:
        look = description.sweep_links(self._sync_state.experiment_id, self._sweep.path.name)
        return description.sweep_note(overrides, _best_text(best), table, str(self._sweep.path), look)


def members(sweep: SweepDir) -> Iterator[tuple[RunDir, Membership]]:
    """The runs in the sweep's ledger, and where in the sweep they stand; damaged lines are passed over.

    UnusableFileError where the ledger is no file that can be read.
    """
    jobs = {job.job: job for _, job in lines(sweep.jobs, LedgerLine, MAX_LEDGER_BYTES) if job and job.run}
    for job in jobs.values():
        values = (override.partition("=") for override in job.overrides)
        yield (
            RunDir(sweep.root / job.run),
            Membership(str(sweep.path), {key.lstrip("+~"): value for key, _, value in values}),
        )


def _best_metrics(best: SweepBest | None) -> dict[str, float]:
    return {f"best/{key}": value for key, value in best.metrics.items()} if best else {}


def _job_counts(table: Path) -> dict[str, float]:
    """How many jobs ended in which state."""
    try:
        text = read_text(table, MAX_LEDGER_BYTES)
        states = Counter(row["state"] for row in csv.DictReader(io.StringIO(text, newline="")) if row.get("state"))
    except FileNotFoundError:
        return {}
    except csv.Error as e:
        raise UnusableFileError(table, str(e)) from e
    known = {state: number for state, number in states.items() if re.fullmatch(r"[a-z ]{1,40}", state)}
    return {f"jobs/{state.replace(' ', '_')}": float(number) for state, number in known.items()}


def _best_text(best: SweepBest | None) -> str:
    """The best job with its parameters and metrics, and a link to its MLflow run (Markdown)."""
    if best is None:
        return ""
    run = RunDir(Path(best.run))
    try:
        known = read_sync_record(run)
    except UnusableFileError:
        known = SyncRecord()  # which syncing that run reports
    place = page(known.experiment_id, run_id=known.run_id) if known.run_id and known.experiment_id else None
    name = f"[{run.path.name}]({place})" if place else run.path.name
    params = " ".join(f"`{key}={value}`" for key, value in best.params.items())
    metrics = ", ".join(f"{key} {value:.4g}" for key, value in best.metrics.items())
    return f"{name} {params}: {metrics}"


def _artifacts(sweep: SweepDir) -> Iterator[Path]:
    yield from (sweep.definition, sweep.jobs, sweep.table_csv, sweep.table_md, sweep.best)
    yield from artifacts.files_in(sweep.plots, ".png")
