"""MLflow: the only module that imports it. Importing this one does not; connecting does (2 to 3 s of CPU)."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from hpcexp.errors import RunError
from hpcexp.redaction import masked_text, without_password
from hpcexp.runs.journal import Point
from hpcexp.text.key_names import flat, keyed, legal_key
from hpcexp.tracking.mlflow.credentials import Named, Withheld, check_artifacts, of_artifacts, origin, withheld
from hpcexp.tracking.mlflow.registry import Registry
from hpcexp.tracking.mlflow.schemas import have_store
from hpcexp.tracking.mlflow.sqlite_metrics import MetricTables, Value, metric_tables
from hpcexp.tracking.mlflow.uri import sqlite_path, with_password
from hpcexp.tracking.mlflow.views import results_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from hpcexp.tracking.mlflow.description import DataSet

_MAX_PARAM = 6000
_MAX_TAG = 8000
MAX_DIGEST = 36
"""Characters of a data set's digest."""
_ENVIRONMENT = {
    # A dead server must not hold a call for the minutes of MLflow's defaults; the sync process has its own retries.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Certificates, and what ~/.netrc has for every host, would go along to another server.
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
    # The address that it prints at a run's end has the password.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_REFUSALS = {
    "UNAUTHENTICATED": "wrong user or password (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD; "
    "for those in tracking.uri, once the run has ended: hpcexp sync RUN --uri URI)",
    "PERMISSION_DENIED": "this user may not write there: ask its owner for EDIT on the experiment, "
    "or choose one of your own by tracking.experiment=NAME (once the run has ended: hpcexp sync RUN --experiment NAME)",
}
"""MLflow's error code → what a server's accounts had against it."""


@dataclass(frozen=True)
class Model:
    """What MLflow records of a trained model."""

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    results: tuple[Point, ...]
    """Its metrics, each as the run has it."""
    dataset: tuple[str, str] | None = None
    """Name and digest of the data that it was trained on."""

    @property
    def step(self) -> int:
        """The one that it was trained to."""
        return max((point.step for point in self.results), default=0)


class Store:
    """One MLflow store, reached with its client. All but `create_run` may be called again with the same result."""

    def __init__(
        self,
        client: MlflowClient,
        artifacts: Path | None,
        tables: MetricTables | None = None,
        *,
        uri: str = "",
        is_named: bool = True,
        is_known: bool = True,
    ) -> None:
        self._client = client
        self._uri = uri
        self._is_named = is_named
        self._is_known = is_known
        self._places: dict[str, str] = {}
        self._artifacts = artifacts
        self._tables = tables
        self._experiments: dict[str, str] = {}

    def experiment(self, name: str) -> str:
        """Id of the experiment, made where there is none; RunError where it was deleted in MLflow."""
        if name not in self._experiments:
            self._experiments[name] = self._experiment(name)
        return self._experiments[name]

    def create_run(self, experiment_id: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Id of a new run."""
        run = self._client.create_run(experiment_id, start_ms, dict(_texts(tags, _MAX_TAG)), name)
        return str(run.info.run_id)

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        """Id of a run that has this tag; None where there is none."""
        found = self._client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def has_run(self, run_id: str) -> bool:
        """Whether the run is there and was not deleted."""
        return self.params(run_id) is not None

    def params(self, run_id: str) -> dict[str, str] | None:
        """The parameters that a run has; None where it is not there or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return dict(run.data.params) if run.info.lifecycle_stage == "active" else None

    def log(
        self,
        run_id: str,
        points: Iterable[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Metrics under their own times and steps, parameters and tags; what is too long for MLflow is cut.

        The metrics by their keys; parameters and tags by their names, all those together that could be mixed up.
        """
        from mlflow.entities import Param, RunTag

        values = list(_values(points))
        if self._tables is not None and values:
            self._tables.insert(run_id, values)
            values = []
        self._client.log_batch(
            run_id,
            metrics=[_metric(value) for value in values],
            params=[Param(*pair) for pair in _texts(params or {}, _MAX_PARAM)],
            tags=[RunTag(*pair) for pair in _texts(tags or {}, _MAX_TAG)],
            synchronous=True,
        )

    def log_dataset(self, run_id: str, data: DataSet) -> None:
        """The data set the run was trained on."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        dataset = Dataset(data.name, data.digest[:MAX_DIGEST], "local", data.source, data.schema, data.profile)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self._client.log_inputs(run_id, inputs)
        except MlflowException:
            self._client.log_inputs(run_id, inputs)  # another process was first to enter the same data

    def log_artifact(self, run_id: str, file: Path, folder: str | None = None) -> None:
        """A file, kept with the run under its name in `folder`. Links are followed: `uploads` sees to what it is."""
        with self._sending(self._place_of_run(run_id)) as artifacts:
            artifacts.log_artifact(str(file), folder)  # type: ignore[no-untyped-call]

    def set_running(self, run_id: str) -> None:
        """Mark the run as running again."""
        self._client.update_run(run_id, status="RUNNING")

    def set_ended(self, run_id: str, status: str, end_ms: int) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status, end_ms)

    def tag_experiment(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Tags of the experiment itself."""
        for key, value in keyed(tags).items():
            self._client.set_experiment_tag(experiment_id, key, value)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """A text, kept with the run under `name`."""
        with TemporaryDirectory(prefix="hpcexp-") as directory:
            file = Path(directory, name)
            file.write_text(text)
            self.log_artifact(run_id, file)

    def model(self, run_id: str, experiment_id: str, model: Model, *, is_new: bool) -> str:
        """Id of the run's LoggedModel, made where there is none. `is_new`: the run is, so that it cannot have one."""
        from mlflow.entities import LoggedModelOutput

        found = None if is_new else self._find_model(run_id, experiment_id)
        model_id = found or self._create_model(run_id, experiment_id, model)
        if found is not None:
            self._client.set_logged_model_tags(model_id, dict(_texts(model.tags, _MAX_TAG)))
        if found is None or not self._is_output(run_id, model_id):
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, model.step)])
        return model_id

    def fill_model(self, run_id: str, model_id: str, model: Model, files: Iterable[Path]) -> None:
        """Give the LoggedModel its results and files; it is ready then."""
        metrics = [_metric(value, model_id, run_id, model.dataset) for value in _values(model.results)]
        self._client.log_batch(run_id, metrics=metrics, synchronous=True)
        with self._sending(self._place_of_model(model_id)) as artifacts:
            for file in files:
                artifacts.log_artifact(str(file))  # type: ignore[no-untyped-call]
        self._client.finalize_logged_model(model_id, "READY")

    def registry(self) -> Registry:
        """Where its models are had by name."""

        def send(model_id: str, directory: Path) -> None:
            with self._sending(self._place_of_model(model_id)) as artifacts:
                artifacts.log_artifacts(str(directory))  # type: ignore[no-untyped-call]

        return Registry(self._client, send)

    def _place_of_run(self, run_id: str) -> str:
        """Where the store wants the run's artifacts."""
        if run_id not in self._places:
            self._places[run_id] = str(self._client.get_run(run_id).info.artifact_uri)
        return self._places[run_id]

    def _place_of_model(self, model_id: str) -> str:
        return str(self._client.get_logged_model(model_id).artifact_location)

    @contextmanager
    def _sending(self, location: str) -> Iterator[ArtifactRepository]:
        """What uploads files to a location; it has no credentials where that is not on the store's server.

        Not the client's own, which asks for the location once more, and caches it by the run's id for all servers.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        check_artifacts(location, self._uri, is_known=self._is_known)
        is_on_server = of_artifacts(location, self._uri) in (None, origin(self._uri))
        with nullcontext() if is_on_server and self._is_named else withheld():
            yield get_artifact_repository(location, tracking_uri=self._client.tracking_uri)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = self._artifacts.as_uri() + "/" + _folder(name) if self._artifacts else None
            try:
                return self._new_experiment(name, location)
            except MlflowException:
                found = self._client.get_experiment_by_name(name)  # another process was first
                if found is None:
                    raise
        if found.name != name:
            raise RunError(
                f"The MLflow experiment '{name}' cannot be made: the server takes it for '{found.name}'.\n"
                "Fix: tracking.experiment=NAME that differs in more than case, accents or spaces at the end."
            )
        if found.lifecycle_stage != "active":
            raise RunError(
                f"The MLflow experiment '{name}' was deleted, so nothing can be recorded in it.\n"
                f"Fix: mlflow experiments restore --experiment-id {found.experiment_id}, or tracking.experiment=NAME."
            )
        return str(found.experiment_id)

    def _new_experiment(self, name: str, location: str | None) -> str:
        experiment_id = str(self._client.create_experiment(name, location))
        self.tag_experiment(experiment_id, results_view(round(time.time() * 1000)))
        return experiment_id

    def _find_model(self, run_id: str, experiment_id: str) -> str | None:
        found = self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        return str(found[0].model_id) if found else None

    def _create_model(self, run_id: str, experiment_id: str, model: Model) -> str:
        params, tags = dict(_texts(model.params, _MAX_PARAM)), dict(_texts(model.tags, _MAX_TAG))
        name = legal_model_name(model.name)
        return str(self._client.create_logged_model(experiment_id, name, run_id, tags, params).model_id)

    def _is_output(self, run_id: str, model_id: str) -> bool:
        outputs = self._client.get_run(run_id).outputs
        return outputs is not None and model_id in [output.model_id for output in outputs.model_outputs]


class Stores:
    """The stores that several syncs have in common, each connected to once.

    `named`: the servers that get credentials; without, all do: whoever calls has chosen them.
    """

    def __init__(self, named: Named | None = None) -> None:
        self._named = named
        self._open: dict[tuple[str, Path], Store] = {}

    def at(self, uri: str, artifacts: Path) -> Store:
        """The store at `uri`. `artifacts`: where the files of a database store go; a server keeps them itself."""
        key = uri, artifacts
        if key not in self._open:
            is_named = self._named is None or self._named.has(uri)
            if self._named is not None and not is_named:
                self._named.warn(uri)
            is_known = self._named is None or self._named.is_known(uri)
            self._open[key] = connect(uri, artifacts, is_named=is_named, is_known=is_known)
        return self._open[key]

    def name(self, uri: str | None) -> None:
        """The command itself names this store."""
        if self._named is not None:
            self._named.add(uri)

    def forget(self, uri: str) -> None:
        """Connect anew next time."""
        self._open = {key: store for key, store in self._open.items() if key[0] != uri}


def connect(uri: str, artifacts: Path, *, is_named: bool = True, is_known: bool = True) -> Store:
    """The store at `uri`. `artifacts`: where the files of a database store go; a server keeps them itself.

    `is_named`: whether it gets the user's credentials. `is_known`: whether it may have artifacts put into a directory.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with nullcontext() if "mlflow" in sys.modules else _for_good():
        from mlflow import MlflowClient

        # MLflow logs a traceback for an error that it raises as well.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        path = sqlite_path(uri)
        server = with_password(uri, os.environ) if is_named else uri
        with nullcontext() if is_named else withheld():
            have_store(uri, artifacts.as_uri())
            client = MlflowClient(tracking_uri=server, registry_uri=server)
        if not is_named:
            client = cast("MlflowClient", Withheld(client))
    is_server = uri.startswith(("http://", "https://"))
    tables = None if path is None else metric_tables(path)
    return Store(client, None if is_server else artifacts, tables, uri=uri, is_named=is_named, is_known=is_known)


@contextmanager
def _for_good() -> Iterator[None]:
    """What is made meanwhile stays: MLflow comes with 300,000 objects.

    Looking through them for garbage takes a quarter of their import, and later a third of a batch.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def legal_model_name(name: str) -> str:
    """A LoggedModel name: it may hold neither `/` nor `.`."""
    return re.sub(r"[/:.%\"']", "-", name) or "model"


def is_refusal(error: BaseException) -> bool:
    """Whether the server's accounts stand against it, so that trying again is in vain."""
    return getattr(error, "error_code", "") in _REFUSALS


def problem_of(error: BaseException, uri: str) -> str:
    """One line for people on why MLflow did not take something: what the system said, or the error's first line."""
    cause: BaseException | None = error
    text = ""
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    if (refused := _REFUSALS.get(getattr(error, "error_code", ""))) is not None:
        return f"{without_password(uri)}: {refused}"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{without_password(uri)}: {masked_text(text or first)}"[:500]


def _values(points: Iterable[Point]) -> Iterator[Value]:
    for point in points:
        for key, value in point.metrics.items():
            yield Value(key, point.time_ms, point.step, value)


def _metric(
    value: Value, model_id: str | None = None, run_id: str | None = None, dataset: tuple[str, str] | None = None
) -> Metric:
    from mlflow.entities import Metric

    name, digest = dataset or (None, None)
    return Metric(value.key, value.value, value.time_ms, value.step, model_id, name, digest, run_id)


def _texts(pairs: Mapping[str, Any], longest: int) -> Iterator[tuple[str, str]]:
    for key, value in keyed(pairs).items():
        text = str(value)
        yield key, text if len(text) <= longest else text[: longest - 1] + "…"


def _folder(experiment: str) -> str:
    """An experiment's folder of artifacts, as a part of an address."""
    return quote(flat(legal_key(experiment)))
