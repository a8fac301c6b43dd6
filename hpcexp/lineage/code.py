"""The code a job runs: its commit, whether it was changed since, and a digest of what touches results."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hpcexp
from hpcexp.lineage.git import git_command
from hpcexp.redaction import masked_text

RESULT_CODE = (
    "data",
    "data_spec.py",
    "models",
    "train",
    "targets/instantiate.py",
    "targets/signature_check.py",
    "job.py",
)
"""Parts of hpcexp that can change a result; a new command line verb makes no run another one."""


@dataclass(frozen=True)
class Commit:
    """State of the project's git checkout."""

    commit: str
    dirty: bool
    remote: str


def git_commit(project: Path) -> Commit | None:
    """The checked-out commit of `project`; None where it is not a git checkout, has no commit or there is no git."""
    status = _git(project, "status", "--porcelain=v2", "--branch")
    head, *changes = [line for line in (status or "").splitlines() if not re.match(r"# branch\.(?!oid)", line)] or [""]
    commit = head.removeprefix("# branch.oid ")
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return None
    remote = _git(project, "config", "--get", "remote.origin.url") or ""
    return Commit(commit, bool(changes), masked_text(remote))


def code_files(target_files: Iterable[Path], project: Path, imports: Callable[[Path], set[str]]) -> dict[str, str]:
    """Path → SHA-256 of hpcexp's result-making sources and of what the user's targets are made of.

    That is the package of each target that is not installed, and every module or package of `project` that those import
    (`imports`: the top-level names that a source file imports), and so on.
    """
    package = Path(hpcexp.__file__).parent
    files = {f for part in RESULT_CODE for f in _sources(package / part)}
    waiting = [f for target in target_files if not _is_installed(target) for f in _sources(_top_of(target))]
    while waiting:
        file = waiting.pop()
        if file not in files:
            files.add(file)
            waiting += [f for name in imports(file) for f in _of_project(project, name)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def code_digest(files: Mapping[str, str]) -> str:
    """SHA-256 over the names and contents of `code_files`, wherever they lie."""
    digest = hashlib.sha256()
    for file, content in files.items():
        digest.update(f"{module_file(Path(file))}\0".encode())
        digest.update(bytes.fromhex(content))
    return digest.hexdigest()


def edited(files: Mapping[str, str]) -> list[str]:
    """Which of `code_files` are otherwise by now, or gone."""
    return [module_file(Path(file)) for file, content in files.items() if _content(Path(file)) != content]


def imported_otherwise(then: Mapping[str, str]) -> list[str]:
    """Which source files (`package/module.py` → SHA-256) this process has imported with another content."""
    return [name for name, content in then.items() if (file := _imported(name)) and _content(file) != content]


def _imported(name: str) -> Path | None:
    module = sys.modules.get(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _content(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _of_project(project: Path, name: str) -> list[Path]:
    """Sources of the project's own module or package `name`; none where it has no such thing."""
    module, package = project / f"{name}.py", project / name
    return [module] if module.is_file() else _sources(package) if (package / "__init__.py").is_file() else []


def _git(project: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(git_command(project, *arguments), capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sources(place: Path) -> list[Path]:
    return [place] if place.is_file() else [f for f in place.rglob("*.py") if "__pycache__" not in f.parts]


def _top_of(file: Path) -> Path:
    """The outermost package around `file`, or the file itself where it is a module of its own."""
    top = file
    while (top.parent / "__init__.py").exists():
        top = top.parent
    return top


def module_file(file: Path) -> str:
    """A source file as Python finds it: `package/module.py`."""
    return str(file.relative_to(_top_of(file).parent))


def is_of_hpcexp(name: str) -> bool:
    """Whether a source file is hpcexp's own, by its name from `module_file`; else it is a user's or a library's."""
    return name.startswith("hpcexp/")


def _is_installed(file: Path) -> bool:
    return any(file.is_relative_to(place) for place in installed_places())


@cache
def installed_places() -> tuple[str, ...]:
    """Where code lies that its version identifies: hpcexp, site-packages, the standard library."""
    paths = sysconfig.get_paths()
    return str(Path(hpcexp.__file__).parent), *(paths[name] for name in ("purelib", "platlib", "stdlib", "platstdlib"))
