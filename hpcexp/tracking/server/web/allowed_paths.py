"""Where a server's files are: it decides that itself, whatever a request says.

A request can name a place in several ways and at several routes. All of them end in MLflow's stores, which write a
place down, and in its artifact repositories, which open it: the checks are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.server import handlers
from mlflow.store.artifact.artifact_repository_registry import (
    _artifact_repository_registry,
    get_registered_artifact_repositories,
)
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Models
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs
from mlflow.utils.file_utils import local_file_uri_to_path

from hpcexp.tracking.server.web.routes import is_plain

_PROXIED = re.compile(r"mlflow-artifacts:(?://)?(/[^?#%]*)")
_REFERENCE = re.compile(r"(?:models|runs):(/[^/?#%][^?#%]*)")
_NUMBERED = re.compile(r"/\d+(/|$)")
"""A directory that MLflow names after an experiment, and whose permissions are that experiment's."""


def restrict_paths(files: Path | None, models: Path | None) -> None:
    """Refuse artifact locations that requests name.

    `files`: the directory of a server that stores artifacts itself; it opens no other. `models`: where it does
    not, a directory that versions of models may be in.
    """

    class GuardedRuns(Runs):
        def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> Any:
            if artifact_location and (files is None or not _is_location(artifact_location)):
                raise _refusal("artifact_location", artifact_location, "Fix: leave it out.")
            return super().create_experiment(name, artifact_location, tags)  # type: ignore[no-untyped-call]

    class GuardedModels(Models):
        def create_model_version(self, name: str, source: str, *args: Any, **more: Any) -> Any:
            if not _is_source(source, models):
                raise _refusal("source", source, "Fix: models:/ID, runs:/ID/PATH, or an artifact of this server.")
            return super().create_model_version(name, source, *args, **more)

    def runs_at(store_uri: str, artifact_uri: str) -> Runs:
        return GuardedRuns(store_uri, artifact_uri)  # type: ignore[no-untyped-call]

    def models_at(store_uri: str) -> Models:
        return GuardedModels(store_uri)  # type: ignore[no-untyped-call]

    for engine in DATABASE_ENGINES:
        _register(handlers._tracking_store_registry, engine, runs_at)
        _register(handlers._model_registry_store_registry, engine, models_at)
    if files is not None:
        _open_only(files)


def _open_only(files: Path) -> None:
    """Open no artifacts outside `files`, also where an experiment names a place that was accepted in former times."""
    root = files.resolve()

    class OwnFiles(LocalArtifactRepository):
        def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
            if not _path(artifact_uri).is_relative_to(root):
                raise _elsewhere(artifact_uri)
            super().__init__(artifact_uri, tracking_uri, registry_uri)

    def refused(artifact_uri: str, **_: Any) -> LocalArtifactRepository:
        raise _elsewhere(artifact_uri)

    for scheme in [*get_registered_artifact_repositories()]:
        if scheme in ("", "file"):
            _register(_artifact_repository_registry, scheme, OwnFiles)
        elif scheme not in ("mlflow-artifacts", "models", "runs"):
            _register(_artifact_repository_registry, scheme, refused)


def _register(registry: Any, scheme: str, builder: Callable[..., Any]) -> None:
    registry.register(scheme, builder)


def _is_location(location: str) -> bool:
    found = _PROXIED.fullmatch(location)
    return found is not None and is_plain(found[1]) and _NUMBERED.match(found[1]) is None


def _is_source(source: str, models: Path | None) -> bool:
    found = _REFERENCE.fullmatch(source) or _PROXIED.fullmatch(source)
    if found is not None:
        return is_plain(found[1])
    return (
        models is not None and source.startswith(("/", "file:///")) and _path(source).is_relative_to(models.resolve())
    )


def _path(uri: str) -> Path:
    path: str = local_file_uri_to_path(uri)  # type: ignore[no-untyped-call]
    return Path(path).resolve()


def _refusal(field: str, value: str, fix: str) -> MlflowException:
    text = f"{field}={value!r} is refused: this server decides where its files are.\n{fix}"
    return MlflowException(text, INVALID_PARAMETER_VALUE)


def _elsewhere(uri: str) -> MlflowException:
    return MlflowException(f"{uri!r} is refused: this server opens only files of its own.", INVALID_PARAMETER_VALUE)
