"""MLflow inside a job: what user code logs with `mlflow.log_*` belongs to the job's run, in its run directory.

Imported only where user code has imported MLflow. A store of a scheme of its own takes the place of a server, as
MLflow's plugins do, so that every way of logging ends here: `mlflow.log_metric`, its client, autologging.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
from mlflow.entities import Experiment, FileInfo, Run, RunData, RunInfo, RunStatus, RunTag
from mlflow.entities import Param as MlflowParam
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils
from mlflow.tracking.client import MlflowClient

from hpcexp.errors import RunError
from hpcexp.media import encode
from hpcexp.media.entries import FOLDERS
from hpcexp.media.recorder import Content, Recorder, say_once
from hpcexp.plan import Plan

SCHEME = "hpcexp-job"
_URI = f"{SCHEME}:/run"
_EXPERIMENT_ID = "0"
_PASSED_ON = frozenset(
    (
        *("log_batch_async", "log_metric_async", "log_param_async", "set_tag_async", "flush_async_logging"),
        *("end_async_logging", "shut_down_async_logging", "supports_workspaces", "supports_trace_archival"),
    )
)
"""What MLflow's base class does by itself."""
_CHART = re.compile(r"(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+\d+\+[0-9a-f-]+(?P<small>\+compressed)?\.\w+")
"""The file of a picture that MLflow's `log_image` has given a key and a step."""
_OWN_TAGS = (
    *("mlflow.runName", "mlflow.user", "mlflow.source.", "mlflow.note.content", "mlflow.parentRunId"),
    *("mlflow.loggedImages", "hpcexp."),
)


_Base: Any = AbstractStore
_SERVICE: Any = utils
_FLUENT: Any = fluent
_ARTIFACTS: Any = _artifact_repository_registry


class JobStore(_Base):  # type: ignore[misc]
    """The one run of a job. What is logged on ranks other than 0 is left out, as of `self.log`."""

    def __init__(self, recorder: Recorder, plan: Plan, run_id: str, started_ms: int) -> None:
        super().__init__()
        self._recorder, self._plan, self._run_id, self._started_ms = recorder, plan, run_id, started_ms

    def get_run(self, run_id: str) -> Run:
        self._check(run_id)
        info = RunInfo(
            run_id=self._run_id,
            experiment_id=_EXPERIMENT_ID,
            user_id="",
            status=RunStatus.to_string(RunStatus.RUNNING),
            start_time=self._started_ms,
            end_time=None,
            lifecycle_stage="active",
            artifact_uri=f"{SCHEME}:/artifacts",
            run_name=self._plan.name,
        )
        params = [MlflowParam(*pair) for pair in self._recorder.notes("param").items()]
        return Run(info, RunData([], params, [RunTag(*pair) for pair in self._recorder.notes("tag").items()]))

    def create_run(self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], run_name: str) -> Run:
        if any(tag.key == "mlflow.parentRunId" for tag in tags):
            raise RunError(
                "mlflow.start_run(nested=True): a job is one run, and has none below it.\n"
                "Fix: leave out the nested run, or make its values metrics of names of their own."
            )
        if run_name and run_name != self._plan.name:
            say_once(f"mlflow.start_run(run_name={run_name!r}): what follows is logged to this run, {self._plan.name}")
        self._note_tags(tags)
        return self.get_run(self._run_id)

    def update_run_info(self, run_id: str, run_status: Any, end_time: Any, run_name: Any) -> RunInfo:
        return self.get_run(run_id).info  # the supervisor knows when a job ends, and how

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self._check(run_id)
        for metric in metrics:
            self.log_metric(run_id, metric)
        for param in params:
            self.log_param(run_id, param)
        self._note_tags(tags)

    def log_metric(self, run_id: str, metric: Any) -> None:
        self._check(run_id)
        self._recorder.metrics({metric.key: float(metric.value)}, metric.step, metric.timestamp)

    def log_param(self, run_id: str, param: Any) -> None:
        self._check(run_id)
        if self._recorder.leads and (kept := self._recorder.note("param", param.key, str(param.value))) != param.value:
            say_once(f"the parameter {param.key} is {kept}, as it was logged first, and not {param.value}")

    def set_tag(self, run_id: str, tag: Any) -> None:
        self._check(run_id)
        self._note_tags([tag])

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        self._check(run_id)
        say_once("mlflow.log_input: the run has the data of its configuration, and no other")

    def get_experiment(self, experiment_id: str) -> Experiment:
        return self.get_experiment_by_name(self._plan.settings.tracking.experiment)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment:
        ours = self._plan.settings.tracking.experiment
        if experiment_name != ours:
            say_once(
                f"mlflow.set_experiment({experiment_name!r}): what follows is logged to this run, of {ours} "
                f"(tracking.experiment={experiment_name} puts it there)"
            )
        return Experiment(_EXPERIMENT_ID, experiment_name, f"{SCHEME}:/artifacts", "active")

    def create_experiment(self, name: str, *args: Any, **kwargs: Any) -> str:
        self.get_experiment_by_name(name)
        return _EXPERIMENT_ID

    def set_experiment_tag(self, experiment_id: str, tag: Any) -> None:
        say_once(f"mlflow.set_experiment_tag({tag.key!r}) is left out: a job logs to its run")

    def search_experiments(self, *args: Any, **kwargs: Any) -> PagedList[Experiment]:
        return PagedList([self.get_experiment(_EXPERIMENT_ID)], None)

    def _search_runs(self, *args: Any, **kwargs: Any) -> tuple[list[Run], None]:
        return [self.get_run(self._run_id)], None

    def search_runs(self, *args: Any, **kwargs: Any) -> PagedList[Run]:
        return PagedList([self.get_run(self._run_id)], None)

    def _check(self, run_id: str) -> None:
        if run_id != self._run_id:
            why = f"a job of hpcexp logs to its own run, and {run_id!r} is the id of another"
            raise MlflowException(why, RESOURCE_DOES_NOT_EXIST)

    def _note_tags(self, tags: Any) -> None:
        for tag in tags:
            if not tag.key.startswith(_OWN_TAGS) and self._recorder.leads:
                self._recorder.note("tag", tag.key, str(tag.value))
            elif tag.key == "mlflow.note.content":
                say_once("the description of a run is hpcexp's: mlflow.note.content is left out (notes=… begins it)")


def _refused(name: str) -> Callable[..., Any]:
    def refused(*_args: Any, **_kwargs: Any) -> Any:
        raise RunError(f"MLflow's {name} does not work in a job of hpcexp, which logs to its own run only.")

    return refused


for _name, _member in inspect.getmembers(AbstractStore, callable):
    if not _name.startswith("_") and _name not in _PASSED_ON and _name not in vars(JobStore):
        setattr(JobStore, _name, _refused(_name))


class JobArtifacts(ArtifactRepository):
    """The artifacts of the job's run, below `media/artifacts`."""

    recorder: Recorder
    root: Path

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        file = Path(local_file)
        if not self.recorder.leads:
            return
        if artifact_path == "images" and (chart := _CHART.fullmatch(file.name)):
            if not chart["small"]:
                content = Content(file.read_bytes(), file.suffix)
                self.recorder.put("image", chart["key"].replace("~", "/"), [content], int(chart["step"]))
            return
        self.recorder.artifact_tree(file, artifact_path, is_named=True)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        if self.recorder.leads:
            self.recorder.artifact_tree(Path(local_dir), artifact_path, is_named=False)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        at = self.root / (path or "")
        found = sorted(at.iterdir()) if at.is_dir() else []
        return [
            FileInfo(str(PurePosixPath(file.relative_to(self.root))), file.is_dir(), file.stat().st_size)
            for file in found
        ]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        shutil.copyfile(self.root / remote_file_path, local_path)


@contextmanager
def own_run(recorder: Recorder, plan: Plan, run_id: str, started_ms: int) -> Iterator[None]:
    """Have MLflow in this process log to the run of the job meanwhile."""
    store = JobStore(recorder, plan, run_id, started_ms)
    artifacts = type("Artifacts", (JobArtifacts,), {"recorder": recorder, "root": _root(plan)})
    before = _SERVICE._tracking_uri
    with ExitStack() as undo:
        _SERVICE._tracking_store_registry.register(SCHEME, lambda store_uri, artifact_uri: store)
        _SERVICE._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
        _ARTIFACTS.register(SCHEME, artifacts)
        _SERVICE._artifact_repos_cache.clear()
        _SERVICE.set_tracking_uri(_URI)
        undo.callback(_SERVICE.set_tracking_uri, before)
        if plan.tracking_uri is not None:
            set_registry_uri: Any = mlflow.set_registry_uri
            set_registry_uri(plan.tracking_uri)
            undo.callback(set_registry_uri, None)
        _FLUENT.MLFLOW_RUN_ID.unset()
        for owner, name, changed in _changed(recorder, plan):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, changed)
        try:
            yield
        finally:
            _FLUENT._safe_end_run()


def _root(plan: Plan) -> Path:
    return Path(plan.run_dir, "media", FOLDERS["artifact"])


def _changed(recorder: Recorder, plan: Plan) -> Iterator[tuple[Any, str, Any]]:
    """Functions of MLflow that are others in a job: owner, name, function."""
    for owner in (fluent, mlflow):
        for name in ("log_metric", "log_metrics", "log_image"):
            yield owner, name, _at_step(getattr(owner, name), recorder)
    for name in ("log_metric", "log_image"):
        yield MlflowClient, name, _at_step(getattr(MlflowClient, name), recorder)

    def log_table(self: MlflowClient, run_id: str, data: Any, artifact_file: str) -> None:
        store = _SERVICE._get_store(self.tracking_uri)
        if not isinstance(store, JobStore):
            log_elsewhere(self, run_id, data, artifact_file)
            return
        store.get_run(run_id)
        if recorder.leads:
            recorder.put("rows", artifact_file, [encode.rows(artifact_file, data)])

    log_elsewhere = MlflowClient.log_table
    yield MlflowClient, "log_table", log_table

    def set_tracking_uri(uri: str | Path) -> None:
        if str(uri) not in ("", _URI, plan.tracking_uri):
            raise RunError(
                f"mlflow.set_tracking_uri({str(uri)!r}): a job logs to its own run, which goes where the configuration "
                f"says.\nFix: leave out the call; tracking.uri={uri} sends the run there."
            )

    for owner in (utils, mlflow):
        yield owner, "set_tracking_uri", set_tracking_uri


def _at_step(function: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    """With the step that training is at where none is given: MLflow itself would take 0."""
    signature = inspect.signature(function)

    @wraps(function)
    def logged(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        is_path = given.arguments.get("artifact_file") is not None
        if given.arguments.get("step") is None and not is_path:
            given.arguments["step"] = recorder.step()
        return function(*given.args, **given.kwargs)

    return logged
