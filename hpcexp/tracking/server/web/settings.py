"""The settings of the process that answers requests, in its environment: everybody may read a command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

VARIABLE = "HPCEXP_WEB"
ENDING = (signal.SIGTERM, signal.SIGINT)
"""What ends the server."""


@dataclass(frozen=True)
class ServerSettings:
    """How to serve, and who may do what. What MLflow needs to know is in variables of its own."""

    socket: int
    """Descriptor of the socket to listen at, which is bound already."""
    port: int
    names: tuple[str, ...]
    """Names that it may be called by."""
    any_address: bool
    """It may be called by every IP address, too."""
    message: str
    """What to print once it answers."""
    users: str = ""
    """SQLite database of the accounts; without, there are none."""
    token: str = ""
    """What lets in where there are no accounts; without, whoever reaches the socket is let in."""
    is_read_only: bool = False
    artifacts: str = ""
    """The directory that files are stored in; without, experiments say themselves where theirs are."""
    certificate: str = ""
    key: str = ""
    forwarded_from: tuple[str, ...] = ()
    """Proxies that say whom they ask for."""
    opened: str = ""
    """An address to open in the browser, once it answers."""
    log: str = ""
    """File for what the server has to say; without, it is stderr."""
    remove: str = ""
    """The socket's own file, to be removed at the end."""

    def environment(self) -> dict[str, str]:
        """As variables."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> ServerSettings:
        """As `environment` wrote them."""
        given: dict[str, Any] = json.loads(environ[VARIABLE])
        for field in fields(cls):
            if isinstance(given[field.name], list):  # JSON has no tuples
                given[field.name] = tuple(given[field.name])
        return cls(**given)


def become(settings: ServerSettings, environ: Mapping[str, str], *what: str) -> NoReturn:
    """Replace this process by the server, so that what ends it ends the server.

    `what` tells those who look at the processes what is served.
    """
    # -P: in the directory of a project there may be modules of the names that MLflow imports.
    command = [sys.executable, "-P", "-m", "hpcexp.tracking.server.web", *what]
    os.set_inheritable(settings.socket, True)
    # Held back until the server handles them: Python would print where in its start it was interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    os.execvpe(command[0], command, {**environ, **settings.environment()})  # noqa: S606 - a command of our own
