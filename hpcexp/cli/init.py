"""`hpcexp init`: a small project of the user's own, that trains at once."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from hpcexp.errors import ConfigError, HpcexpError
from hpcexp.text.formatting import near, pairs

TEMPLATE = Path(__file__).parents[1] / "template"
PLACEHOLDER = "__NAME__"
"""Stands for the package's name, in files of the template and in their paths."""
HIDDEN = {"gitignore": ".gitignore"}
"""Files that would act on hpcexp's own checkout under the name they get in a project."""
FOLDERS = frozenset({"conf", "examples", "runs", "tests"})
"""Names that the project uses beside its package."""


def init(argv: Sequence[str]) -> int:
    """Exit status 0, or 2 where the project cannot be written; then nothing is."""
    p = argparse.ArgumentParser(prog="hpcexp init", description="Create a project that trains at once.")
    p.add_argument("directory", type=Path, metavar="DIR", help="a new or empty directory")
    p.add_argument("--name", help="name of its Python package (default: from DIR)")
    a = p.parse_args(argv)
    target = a.directory.resolve()
    name = a.name if a.name is not None else package_name(target)
    if problems := [*place_problems(target), *name_problems(name, given=a.name is not None)]:
        raise ConfigError(problems)
    files = write_project(target, name)
    there = near(target)
    print(f"Wrote {len(files)} files to {target}, with the package '{name}'. Next:")
    steps = [] if there == "." else [(f"cd {shlex.quote(there)}", "")]
    steps += [("hpcexp train", "train its default experiment"), ("pytest", "test its parts (pip install pytest)")]
    print(pairs([*steps, ("README.md", "says what is where, and what to try next")]))
    return 0


def package_name(directory: Path) -> str:
    """The directory's name as Python would spell it: `My-Study` → `my_study`."""
    return re.sub(r"\W", "_", directory.name.lower())


def place_problems(target: Path) -> list[str]:
    """Why no project can be written to `target`; nothing is tried out."""
    try:
        return list(_place_problems(target))
    except OSError as e:
        return [f"{target} cannot be used: {e.strerror}.\nFix: a directory elsewhere."]


def name_problems(name: str, *, given: bool) -> Iterator[str]:
    """Why `name` cannot be a package beside hpcexp and what else is installed."""
    what = f"--name {name}" if given else f"'{name}', made from the directory's name"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        yield (
            f"{what}: not the name of a Python package: a letter, then letters, digits and _; no keyword of Python.\n"
            "Fix: --name my_study"
        )
    elif name.lower() in FOLDERS:
        yield f"{what}: the project has a folder of that name for something else.\nFix: --name {name}_study"
    elif _is_taken(name):
        yield (
            f"{what}: Python has a module of that name, which the project would hide from everything that imports it.\n"
            f"Fix: --name {name}_study"
        )


def project_files() -> list[Path]:
    """Paths of the template's files, relative to it, without the caches of tools that passed there."""
    found = (f.relative_to(TEMPLATE) for f in TEMPLATE.rglob("*") if f.is_file())
    return sorted(f for f in found if not any(part == "__pycache__" or part.startswith(".") for part in f.parts))


def write_project(target: Path, name: str) -> list[Path]:
    """Fill a directory that is new or empty, or leave it as it is: HpcexpError where it cannot be written."""
    files = project_files()
    exists = target.is_dir()
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".hpcexp-init-", dir=target if exists else target.parent))
        for file in files:
            _write(staging, file, name)
        _move(staging / PLACEHOLDER, target, exists=exists)
    except OSError as e:
        raise HpcexpError(
            f"{target} cannot be written: {e.strerror}.\nFix: another directory, or the rights to write there."
        ) from e
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return files


def _place_problems(target: Path) -> Iterator[str]:
    if target.is_dir():
        if any(target.iterdir()):
            yield f"{target} is not empty, and `init` overwrites nothing.\nFix: a new directory."
            return
    elif target.exists():
        yield f"{target} is a file.\nFix: a new directory."
        return
    above = next(p for p in (target, *target.parents) if p.exists())
    if not above.is_dir():
        yield f"{target} cannot be made: {above} is a file.\nFix: a directory elsewhere."
    elif not os.access(above, os.W_OK | os.X_OK):
        yield f"{target} cannot be made: you may not write in {above}.\nFix: a directory elsewhere."


def _is_taken(name: str) -> bool:
    """Whether importing `name` finds something that is installed; what lies in the current directory does not count."""
    if name == "hpcexp" or name in sys.stdlib_module_names:
        return True
    installed = [p for p in sys.path if Path(p).resolve() != Path.cwd()]
    spec = PathFinder.find_spec(name, installed)
    return spec is not None and spec.origin is not None


def _write(staging: Path, file: Path, name: str) -> None:
    """One file of the template into `staging`, where the project is made in a folder with ordinary permissions."""
    parts = [HIDDEN.get(part, part).replace(PLACEHOLDER, name) for part in file.parts]
    made = staging.joinpath(PLACEHOLDER, *parts)
    made.parent.mkdir(parents=True, exist_ok=True)
    text = (TEMPLATE / file).read_text(encoding="utf-8")
    made.write_text(text.replace(PLACEHOLDER, name), encoding="utf-8")


def _move(made: Path, target: Path, *, exists: bool) -> None:
    """In one step where `target` is new; an empty directory is kept, as it may be the working directory."""
    if exists:
        for entry in sorted(made.iterdir()):
            entry.rename(target / entry.name)
    else:
        made.rename(target)
