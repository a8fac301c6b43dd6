"""MLflow's web interface on a store of runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from hpcexp.errors import ConfigError, RunError
from hpcexp.redaction import without_password
from hpcexp.rundir import RunDir
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.tracking.mlflow.links import artifact_root, ui_link
from hpcexp.tracking.mlflow.uri import with_driver
from hpcexp.tracking.server.web.environment import environment
from hpcexp.tracking.server.web.settings import ServerSettings

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Interface:
    """Which store's runs are shown, and where."""

    store: str
    """URI of MLflow's database."""
    root: Path
    """Directory of runs."""
    host: str
    port: int
    socket: Path | None = None
    """A Unix socket instead of host and port."""
    may_write: bool = False

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        if self.socket is not None:
            return "http://localhost"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether other machines cannot reach it."""
        return self.socket is not None or self.host in _LOOPBACK

    @property
    def log(self) -> Path | None:
        """The file for what MLflow has to say; None where there is no place for it."""
        root = self.root.absolute()
        return root / ".ui.log" if root.is_dir() and os.access(root, os.W_OK) else None


def latest_experiment(root: Path, store: str) -> str | None:
    """Id of the experiment of the run below `root` that was sent to the store last; None where there is none."""
    notes = [(file.stat().st_mtime_ns, file.parent) for file in root.glob("*/*/mlflow.json") if file.is_file()]
    for _, directory in sorted(notes, reverse=True):
        with suppress(RunError):
            known = read_sync_record(RunDir(directory))
            if known.experiment_id is not None and known.tracking_uri == without_password(store):
                return known.experiment_id
    return None


def database_only(uri: str) -> None:
    """ConfigError where `uri` is a server itself."""
    if uri.startswith(("http://", "https://")):
        raise ConfigError(
            f"tracking.uri={without_password(uri)} is an MLflow server, which has the UI already.\n"
            f"Fix: open {ui_link(without_password(uri))}."
        )


def ui_settings(interface: Interface, socket: int, token: str, message: str) -> ServerSettings:
    """How it is served at the socket of this descriptor; `message` is printed once it answers."""
    return ServerSettings(
        socket=socket,
        port=interface.port,
        names=tuple(dict.fromkeys((*_LOOPBACK, gethostname(), interface.host))),
        any_address=not interface.is_local,
        message=message,
        token=token,
        is_read_only=not interface.may_write,
        artifacts=str(artifact_root(interface.root)),
        log=str(interface.log or ""),
        remove=str(interface.socket or ""),
    )


def ui_environment(interface: Interface, environ: Mapping[str, str]) -> dict[str, str]:
    """MLflow's own settings for it. The store's password is here, as everybody may read a command line."""
    return environment(
        environ,
        with_driver(interface.store),
        "*",  # which names may be used is decided before MLflow
        _MLFLOW_SERVER_ARTIFACT_ROOT=artifact_root(interface.root).as_uri(),
    )
