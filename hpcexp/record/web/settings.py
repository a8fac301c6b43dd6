"""What the process that answers requests is told, by its environment: everybody may read a command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

VARIABLE = "HPCEXP_WEB"


@dataclass(frozen=True)
class Settings:
    """How to serve, and who may do what. What MLflow needs to know is in variables of its own."""

    socket: int
    """Descriptor of the socket to listen at, which is bound already."""
    port: int
    names: tuple[str, ...]
    """Names that it may be called by."""
    any_address: bool
    """It may be called by every IP address, too."""
    told: str
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
    log: str = ""
    """File for what the server has to say; without, it is stderr."""
    remove: str = ""
    """The socket's own file, to be removed at the end."""

    def environment(self) -> dict[str, str]:
        """As variables for `command`."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Settings:
        """As `environment` wrote them."""
        given: dict[str, Any] = json.loads(environ[VARIABLE])
        for field in fields(cls):
            if isinstance(given[field.name], list):  # JSON has no tuples
                given[field.name] = tuple(given[field.name])
        return cls(**given)


def command(*what: str) -> list[str]:
    """Command of the process; `what` tells those who look at the processes what it serves."""
    # -P: in the directory of a project there may be modules of the names that MLflow imports.
    return [sys.executable, "-P", "-m", "hpcexp.record.web", *what]
