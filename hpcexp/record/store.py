"""MLflow: the only module that imports it. Importing this one does not; connecting does (2 to 3 s of CPU)."""

from __future__ import annotations

import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcexp.errors import RunError
from hpcexp.record.journal import Point
from hpcexp.record.uri import sqlite_path, without_password
from hpcexp.rundir import held

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_T = TypeVar("_T")

MAX_METRICS = 1000
"""Metrics that MLflow takes in one batch."""
_MAX_PAIRS = 100
_MAX_PARAM = 6000
_MAX_TAG = 8000
_MAX_KEY = 250
_ENVIRONMENT = {
    # A dead server must not hold a call for the minutes of MLflow's defaults; the shipper has its own retries.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Store:
    """One MLflow store, reached with its client. Everything here may be called again with the same result."""

    def __init__(self, client: MlflowClient, artifacts: Path | None) -> None:
        self._client = client
        self._artifacts = artifacts

    def experiment(self, name: str) -> str:
        """Id of the experiment, made where there is none; RunError where it was deleted in MLflow."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = self._artifacts.as_uri() + "/" + _safe_file_name(name) if self._artifacts else None
            try:
                return str(self._client.create_experiment(name, location))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)  # another process was first
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RunError(
                f"The MLflow experiment '{name}' was deleted, so nothing can be recorded in it.\n"
                f"Fix: mlflow experiments restore --experiment-id {found.experiment_id}, or tracking.experiment=NAME."
            )
        return str(found.experiment_id)

    def run(self, experiment_id: str, token: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Id of the run tagged with `token`, made where there is none."""
        found = self._client.search_runs([experiment_id], f"tags.`hpcexp.token` = '{token}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        first = dict(islice(_texts({"hpcexp.token": token, **tags}, _MAX_TAG), _MAX_PAIRS))
        run = self._client.create_run(experiment_id, start_ms, first, name)
        return str(run.info.run_id)

    def has_run(self, run_id: str) -> bool:
        """Whether the run is there and was not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def log_points(self, run_id: str, points: Iterable[Point]) -> None:
        """Metrics under their own times and steps."""
        for batch in _batches((metric for point in points for metric in _metrics(point)), MAX_METRICS):
            self._client.log_batch(run_id, metrics=batch, synchronous=True)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters; what is too long for MLflow is cut."""
        from mlflow.entities import Param

        for batch in _batches(_texts(params, _MAX_PARAM), _MAX_PAIRS):
            self._client.log_batch(run_id, params=[Param(*pair) for pair in batch], synchronous=True)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags; what is too long for MLflow is cut."""
        from mlflow.entities import RunTag

        for batch in _batches(_texts(tags, _MAX_TAG), _MAX_PAIRS):
            self._client.log_batch(run_id, tags=[RunTag(*pair) for pair in batch], synchronous=True)

    def log_dataset(self, run_id: str, name: str, digest: str, source: str) -> None:
        """The data set the run was trained on."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:36], source_type="local", source=source)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def log_artifact(self, run_id: str, file: Path, folder: str | None = None) -> None:
        """A file, kept with the run under its name in `folder`."""
        self._client.log_artifact(run_id, str(file), folder)

    def set_running(self, run_id: str) -> None:
        """The run goes on."""
        self._client.update_run(run_id, status="RUNNING")

    def set_ended(self, run_id: str, status: str, end_ms: int) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status, end_ms)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """A text, kept with the run under `name`."""
        self._client.log_text(run_id, text, name)

    def model(self, run_id: str, name: str, params: Mapping[str, str], step: int) -> str:
        """Id of the run's LoggedModel, made where there is none; `step` is the one it was trained to."""
        from mlflow.entities import LoggedModelOutput

        run = self._client.get_run(run_id)
        experiment_id = str(run.info.experiment_id)
        found = self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        if found:
            model_id = str(found[0].model_id)
        else:
            texts = dict(_texts(params, _MAX_PARAM))
            made = self._client.create_logged_model(experiment_id, legal_model_name(name), run_id, params=texts)
            model_id = str(made.model_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        if model_id not in [output.model_id for output in outputs]:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
        return model_id

    def fill_model(
        self, run_id: str, model_id: str, files: Iterable[Path], tags: Mapping[str, str], results: Iterable[Point]
    ) -> None:
        """Give the LoggedModel its `results`, tags and files; it is ready then."""
        self._client.set_logged_model_tags(model_id, dict(_texts(tags, _MAX_TAG)))
        metrics = [metric for point in results for metric in _metrics(point, model_id, run_id)]
        self._client.log_batch(run_id, metrics=metrics, synchronous=True)
        for file in files:
            self._client.log_model_artifact(model_id, str(file))
        self._client.finalize_logged_model(model_id, "READY")


def connect(uri: str, artifacts: Path) -> Store:
    """The store at `uri`. `artifacts`: where the files of a database store go; a server keeps them itself."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # MLflow logs a traceback for an error that it raises as well.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    path = sqlite_path(uri)
    if path is not None:
        _create_sqlite(uri, path, artifacts)
    is_server = uri.startswith(("http://", "https://"))
    return Store(MlflowClient(tracking_uri=uri, registry_uri=uri), None if is_server else artifacts)


def legal_key(key: str) -> str:
    """A metric, parameter or tag name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:_MAX_KEY]


def legal_model_name(name: str) -> str:
    """A LoggedModel name: it may hold neither `/` nor `.`."""
    return re.sub(r"[/:.%\"']", "-", name) or "model"


def problem_of(error: BaseException, uri: str) -> str:
    """One line for people on why MLflow did not take something: what the system said, or the error's first line."""
    cause: BaseException | None = error
    text = ""
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{without_password(uri)}: {text or first}"[:500]


@contextmanager
def held_within(timeout_s: float, lock: Path, what: str) -> Iterator[None]:
    """`rundir.held`, waiting for `timeout_s` while another process has the lock."""
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(lock, what))
                break
            except RunError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
        yield


def _create_sqlite(uri: str, path: Path, artifacts: Path) -> None:
    """Make the database where there is none, one process at a time: racing migrations break the file for good."""
    with held_within(math.inf, path.with_name(f".{path.name}.lock"), f"{path} is being made by"):
        if _has_schema(path):
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # WAL lets the UI read while runs write. It stays in the file.
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        SqlAlchemyStore(uri, artifacts.as_uri()).engine.dispose()  # type: ignore[no-untyped-call]


def _has_schema(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
        try:
            return bool(connection.execute("SELECT count(*) FROM experiments").fetchone()[0])
        except sqlite3.DatabaseError:
            return False


def _metrics(point: Point, model_id: str | None = None, run_id: str | None = None) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for key, value in point.metrics.items():
        yield Metric(legal_key(key), value, point.time_ms, point.step, model_id=model_id, run_id=run_id)


def _texts(pairs: Mapping[str, Any], longest: int) -> Iterator[tuple[str, str]]:
    for key, value in pairs.items():
        text = str(value)
        yield legal_key(key), text if len(text) <= longest else text[: longest - 1] + "…"


def _batches(items: Iterable[_T], size: int) -> Iterator[Sequence[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _safe_file_name(name: str) -> str:
    return re.sub(r"[^\w\-.]", "_", name).strip(".") or "experiment"
