"""Models by name: MLflow's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.tracking.mlflow.tags import EXPORTED

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Registry:
    """The registry of one store. What is done twice is as done once.

    `send`: sends the files in a directory to a LoggedModel.
    """

    def __init__(self, client: MlflowClient, send: Callable[[str, Path], object]) -> None:
        self._client = client
        self._send = send

    def is_loadable(self, model_id: str) -> bool:
        """Whether MLflow's tools can load the LoggedModel, as it was trained: it has more than a checkpoint."""
        return self._client.get_logged_model(model_id).tags.get(EXPORTED) == "true"

    def make_loadable(self, model_id: str, directory: Path, edited: Sequence[str]) -> None:
        """Give the LoggedModel the files of an MLflow model; `edited`: code of it that is not that of the training."""
        self._send(model_id, directory)
        self._client.set_logged_model_tags(model_id, {EXPORTED: f"edited: {', '.join(edited)}" if edited else "true"})

    def register(self, name: str, description: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> str:
        """Number of the LoggedModel's version under `name`, made where there is none."""
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(self._client.tracking_uri)  # a registry in a database looks for the model there
        try:
            self._client.create_registered_model(name, description=description)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if not (known := self._versions(name, model_id, run_id)):
            source = f"models:/{model_id}"
            made = int(self._client.create_model_version(name, source, run_id, dict(tags), model_id=model_id).version)
            # Who does the same at this moment makes one, too: the first of them stays, and both see it.
            known = self._versions(name, model_id, run_id) or [made]
            if made != known[0]:
                self._client.delete_model_version(name, str(made))
        return str(known[0])

    def _versions(self, name: str, model_id: str, run_id: str) -> list[int]:
        """Numbers of the LoggedModel's versions under `name`."""
        found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return sorted(int(version.version) for version in found if version.source == f"models:/{model_id}")

    def point(self, name: str, alias: str, version: str) -> str | None:
        """Have the alias stand for a version; number of the one that it stood for before, None where there was none."""
        known = self._client.get_registered_model(name).aliases.get(alias)
        self._client.set_registered_model_alias(name, alias, version)
        return None if known is None else str(known)
