"""The MLflow run of a sweep, above those of its jobs: its question and axes, and in the end its answer."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcexp.errors import RunError
from hpcexp.plan import Plan
from hpcexp.record import describe
from hpcexp.record.delivery import STATUS, Membership
from hpcexp.record.journal import Point
from hpcexp.record.note import Note, have_run
from hpcexp.record.store import Store, Stores, legal_key, problem_of
from hpcexp.record.ui import artifact_root, page
from hpcexp.record.views import sweep_view
from hpcexp.rundir import FINAL_STATES, RunDir, SweepDir, read_json, write_atomic


class Parent:
    """Sends what the directory of a sweep has. It goes where the sweep's runs go."""

    def __init__(self, sweep: SweepDir, stores: Stores) -> None:
        self._sweep = sweep
        self._stores = stores
        self._note = Note(sweep.mlflow)
        self._store: Store | None = None
        self.was_remade = False
        """Whether the MLflow run was gone, and its children are below none."""

    @property
    def uri(self) -> str | None:
        """Where it goes; None before any of its runs has said that."""
        if self._sweep.secret_uri.exists():
            return self._sweep.secret_uri.read_text().strip()
        return self._note.get("tracking_uri")

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None where there is none yet."""
        return self._note.get("run_id")

    @property
    def is_started(self) -> bool:
        """Whether this process has the MLflow run, new or going on."""
        return self._store is not None

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has the sweep as its directory holds it now."""
        status = self._sweep.read_status()
        noted = [self._note.get(key) for key in ("delivered", "state", "ended")]
        return noted == [True, status.get("state"), status.get("ended")]

    def go_with(self, plan: Plan, uri: str, *, is_redirected: bool = False) -> None:
        """Go where this run of the sweep goes: to `uri`, with its password, and into the experiment of the first.

        Of one that `is_redirected` into its experiment.
        """
        if uri == plan.tracking_uri:
            self._sweep.secret_uri.unlink(missing_ok=True)
        elif uri != self.uri:
            write_atomic(self._sweep.secret_uri, f"{uri}\n", mode=0o600)
        experiment, user = str(plan.config["tracking"]["experiment"]), str(plan.lineage.get("user", ""))
        is_elsewhere = is_redirected and self._note.get("experiment") != experiment
        if is_elsewhere or self._note.get("tracking_uri") != plan.tracking_uri:
            self._note.clear()
            self._note.save(tracking_uri=plan.tracking_uri, experiment=experiment, user=user)

    def start(self) -> Store:
        """Have the MLflow run, with what is asked; RunError where the sweep's directory is gone."""
        if self._store is not None:
            return self._store
        if not self._sweep.path.is_dir():
            raise RunError(f"{self._sweep.path} is gone")
        status, asked, uri = self._sweep.read_status(), read_json(self._sweep.asked), self.uri
        assert uri is not None
        self._note.update(delivered=False)
        store = self._stores.at(uri, artifact_root(self._sweep.path.parent.parent))
        started = round((status.get("started") or time.time()) * 1000)
        tags = {**self._tags(), "hpcexp.state": str(status.get("state", ""))}
        before = self._note.get("run_id")
        is_new = have_run(self._note, store, str(self._note["experiment"]), started, tags)
        self.was_remade = is_new and before is not None
        # MLflow changes no parameter: of axes that were edited the description tells.
        known = {} if is_new else store.params(self._note["run_id"]) or {}
        params = {key: text for key, text in describe.sweep_params(asked).items() if legal_key(key) not in known}
        told = {"mlflow.note.content": self._description(asked, {}, "")}
        store.log(self._note["run_id"], params=params, tags=told if is_new else {**tags, **told})
        self._save_view(store, asked, started)
        if not is_new and status.get("state") not in FINAL_STATES:
            store.set_running(self._note["run_id"])
        self._store = store
        return store

    def finish(self) -> None:
        """Send the answer and the status of a sweep that has ended."""
        status = self._sweep.read_status()
        state = status.get("state")
        if state not in FINAL_STATES or self.is_complete:
            return
        store, run_id = self.start(), str(self._note["run_id"])
        ended_ms = round((status.get("ended") or time.time()) * 1000)
        best = read_json(self._sweep.best)
        results = Point(ended_ms, 0, {**_best_metrics(best), **_job_counts(self._sweep.table_csv)})
        store.log(run_id, [results], tags=self._final_tags(status, best))
        for file, folder in _artifacts(self._sweep):
            store.log_artifact(run_id, file, folder)
        store.set_ended(run_id, STATUS[state], ended_ms)
        self._note.save(delivered=True, problem=None, state=state, ended=status.get("ended"))

    def failed(self, error: Exception) -> str:
        """Keep why MLflow did not take something, and connect anew at the next try; the same in words."""
        problem = problem_of(error, self._note.get("tracking_uri") or "")
        self._store = None
        if self.uri is not None:
            self._stores.forget(self.uri)
        if self._sweep.path.is_dir():
            self._note.save(problem=problem)
        return problem

    def _save_view(self, store: Store, asked: Mapping[str, Any], now_ms: int) -> None:
        """Have the sweep in the experiment's menu of views."""
        view = sweep_view(asked, self._sweep.path.name, self._note["run_id"], now_ms)
        store.tag_experiment(self._note["experiment_id"], view)

    def _tags(self) -> dict[str, str]:
        name, asked = self._sweep.path.name, read_json(self._sweep.asked)
        known = {"mlflow.user": self._note.get("user"), "mlflow.source.name": asked.get("command")}
        return {
            **{key: str(value) for key, value in known.items() if value},
            "mlflow.source.type": "LOCAL",
            "mlflow.runName": name,
            "hpcexp.sweep": name,
            "hpcexp.sweep_dir": str(self._sweep.path),
            "hpcexp.objectives": ", ".join(f"{o['metric']} {o['mode']}" for o in asked.get("objectives", [])),
        }

    def _final_tags(self, status: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, str]:
        table = self._sweep.table_md.read_text() if self._sweep.table_md.exists() else ""
        note = self._description(read_json(self._sweep.asked), best, table)
        cause = {"hpcexp.cause": str(status["cause"])} if status.get("cause") else {}
        return {"mlflow.note.content": note, "hpcexp.state": str(status["state"]), **cause}

    def _description(self, asked: Mapping[str, Any], best: Mapping[str, Any], table: str) -> str:
        look = describe.sweep_links(self._note["experiment_id"], self._sweep.path.name)
        return describe.sweep_note(asked, _best_text(best), table, str(self._sweep.path), look)


def members(sweep: SweepDir) -> Iterator[tuple[RunDir, Membership]]:
    """The runs that the sweep's ledger has, and where in the sweep they stand."""
    lines = sweep.jobs.read_text(errors="replace").splitlines() if sweep.jobs.exists() else []
    jobs = {job["job"]: job for job in map(_parsed, lines) if job is not None}
    for job in jobs.values():
        values = (override.partition("=") for override in job["asked"])
        yield (
            RunDir(sweep.root / job["run"]),
            Membership(str(sweep.path), {key.lstrip("+~"): value for key, _, value in values}),
        )


def _parsed(line: str) -> dict[str, Any] | None:
    """A job of the ledger that has a run; None for a line that a dead driver left torn."""
    try:
        job: dict[str, Any] = json.loads(line)
        return job if job["run"] and job["job"] and isinstance(job["asked"], list) else None
    except (ValueError, KeyError, TypeError):
        return None


def _best_metrics(best: Mapping[str, Any]) -> dict[str, float]:
    return {f"best/{key}": float(value) for key, value in best.get("metrics", {}).items() if value is not None}


def _job_counts(table: Path) -> dict[str, float]:
    """How many jobs came to which state."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        states = Counter(row["state"] for row in csv.DictReader(file) if row.get("state"))
    return {f"jobs/{state.replace(' ', '_')}": float(number) for state, number in states.items()}


def _best_text(best: Mapping[str, Any]) -> str:
    """The best job with its parameters and metrics, and a link to its MLflow run (Markdown)."""
    if not best:
        return ""
    run = RunDir(Path(str(best.get("run", ""))))
    note = read_json(run.mlflow)
    place = page(note["experiment_id"], run_id=note["run_id"]) if note.get("run_id") else None
    name = f"[{run.path.name}]({place})" if place else run.path.name
    params = " ".join(f"`{key}={value}`" for key, value in best.get("params", {}).items())
    metrics = ", ".join(f"{key} {value:.4g}" for key, value in best.get("metrics", {}).items() if value is not None)
    return f"{name} {params}: {metrics}"


def _artifacts(sweep: SweepDir) -> Iterator[tuple[Path, str | None]]:
    for file in (sweep.asked, sweep.jobs, sweep.table_csv, sweep.table_md, sweep.best):
        if file.exists():
            yield file, None
    for picture in sorted(sweep.plots.glob("*.png")):
        yield picture, sweep.plots.name
