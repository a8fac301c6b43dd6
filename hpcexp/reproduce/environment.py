"""A virtual environment with the packages that a run had."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import hpcexp
from hpcexp.errors import RunError
from hpcexp.runs.records.lineage import EnvironmentFacts

_LOG_LINES = 6


def built(recorded: EnvironmentFacts | None, place: Path, project: Path) -> Path:
    """The Python of a new environment in `place` with exactly what `environment.json` says; RunError with pip's words.

    hpcexp itself is the installed one, and the project is used in place.
    """
    if recorded is None:
        raise RunError("The run kept no list of its packages.\nFix: leave --env out, to take the present environment.")
    python = place / "bin" / "python"
    wanted = requirements(recorded.packages, project)
    _done([_interpreter(recorded.python.version), "-m", "venv", "--without-pip", str(place)])
    listed = place / "requirements.txt"
    listed.write_text("".join(f"{line}\n" for line in wanted))
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    _done([*pip, "install", "--quiet", "--no-deps", "-r", str(listed)])
    [modules] = place.glob("lib/python*/site-packages")
    (modules / "hpcexp").symlink_to(Path(hpcexp.__file__).parent)
    return python


def requirements(packages: Mapping[str, str], project: Path) -> list[str]:
    """`name==version` of each package that comes from an index."""
    own = from_source(project)
    return [f"{name}=={version}" for name, version in packages.items() if name not in own]


def from_source(project: Path) -> set[str]:
    """Packages that are identified by digests of their files: hpcexp, and the project if it can be installed."""
    try:
        name = tomllib.loads((project / "pyproject.toml").read_text()).get("project", {}).get("name", "")
    except (OSError, tomllib.TOMLDecodeError):
        name = ""
    return {"hpcexp", re.sub(r"[-_.]+", "-", str(name)).lower()}


def _interpreter(version: str) -> str:
    """A Python of the run's minor version."""
    minor = ".".join(version.split(".")[:2])
    if platform.python_version().startswith(f"{minor}."):
        return sys.executable
    found = shutil.which(f"python{minor}")
    # A version manager may have the name without the thing.
    if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
        return found
    raise RunError(
        f"The run had Python {version}. This is {platform.python_version()}, and there is no python{minor} that works."
        "\n"
        f"Fix: install Python {minor}, or leave --env out."
    )


def _done(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LOG_LINES:])
    raise RunError(
        f"The run's environment cannot be built:\n{said}\n"
        "Fix: point pip at an index that has it (versions as 2.8.0+cpu: "
        "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), or leave --env out."
    )
