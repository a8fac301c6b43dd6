"""The environment a job runs in, read without importing it."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator

PACKAGES = ("hpcexp", "torch", "pytorch-lightning", "hydra-core", "omegaconf", "mlflow", "numpy")


def environment() -> dict[str, str]:
    """Flat facts: host, user, platform and versions."""
    facts = {"host": socket.gethostname(), "user": _user(), "platform": platform.platform(terse=True)}
    facts["version.python"] = platform.python_version()
    known = installed()
    return facts | {f"version.{package}": known[package] for package in PACKAGES if package in known}


def installed() -> dict[str, str]:
    """Package → version, from the names of installed metadata directories.

    importlib.metadata would parse a mail header for each, and costs an eighth of all planning.
    """
    versions: dict[str, str] = {}
    for name in _entries():
        match = re.fullmatch(r"(.+?)-(.+)\.dist-info", name)
        if match:
            versions.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return versions


def _entries() -> Iterator[str]:
    for place in sys.path:
        try:
            yield from os.listdir(place or ".")  # noqa: PTH208 - names alone, of a thousand entries
        except OSError:
            continue


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
