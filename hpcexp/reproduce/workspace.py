"""Where a run is trained again: a scratch directory with its code as it was, in a git worktree of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from hpcexp.errors import InUseError, RunError
from hpcexp.files.locks import held, held_within
from hpcexp.files.untrusted import member_path, read_text, sha256_of
from hpcexp.launch.base.polling import signals_caught
from hpcexp.lineage.git import git_command
from hpcexp.lineage.signature import identity_config
from hpcexp.reproduce.original import Original
from hpcexp.runs.records.files import read
from hpcexp.runs.records.lineage import DataRecord
from hpcexp.tracking.mlflow.description import flatten

_PREFIX = "hpcexp-reproduce-"
_LOCK = ".lock"
"""In a scratch directory that is not kept: a file that its command locks."""
_CLEARED_S = 5.0
"""How long another command may have looked at a new scratch directory."""
_CODE = "code"
_OF_GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")
"""Variables that would have git look at another repository than that of its directory."""


@dataclass(frozen=True)
class Code:
    """A run's code."""

    project: Path
    """The job's working directory."""
    description: str
    """What it is."""
    is_restored: bool
    """Whether it is a copy of what was; otherwise it is what is there now."""
    first: tuple[str, ...] = ()
    """Further directories that modules are looked for in, before those of the present environment."""

    @property
    def has_hpcexp(self) -> bool:
        """Whether it is a checkout of hpcexp itself."""
        return (self.project / "hpcexp" / "__init__.py").is_file()

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment of processes that run it. What is not restored is not written to either."""
        path = [str(self.project), *self.first, *filter(None, [inherited.get("PYTHONPATH")])]
        quiet = {} if self.is_restored else {"PYTHONDONTWRITEBYTECODE": "1"}
        return {**inherited, "PYTHONPATH": os.pathsep.join(path), **quiet}


@contextmanager
def scratch(*, keep: bool) -> Iterator[Path]:
    """A directory that is gone in the end, unless it is kept. Those that killed commands have left go as well."""
    for left in Path(gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is gone by now, or has no locks
            _clear(left)
    path = Path(mkdtemp(prefix=_PREFIX))
    if keep:
        yield path
        return
    with held_within(_CLEARED_S, path / _LOCK, f"{path} is used by"):
        try:
            yield path
        finally:
            with signals_caught():
                shutil.rmtree(path, ignore_errors=True)


def _clear(left: Path) -> None:
    """Remove a scratch directory whose command is gone, and what git knows of it."""
    if left.lstat().st_uid != os.getuid() or not (left / _LOCK).is_file():
        return  # somebody else's, or kept
    if not read_text(left / _LOCK).endswith(f" on {socket.gethostname()}"):
        return  # of another machine, whose locks may not be seen here; or its command is about to take it
    with suppress(InUseError), held(left / _LOCK, f"{left} is used by"):
        copy = left / _CODE
        known = _run_git(copy, "rev-parse", "--path-format=absolute", "--git-common-dir") if copy.is_dir() else None
        if known is not None and known.returncode == 0:
            _run_git(Path(known.stdout.strip()), "worktree", "remove", "--force", "--force", str(copy))
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def code_of(original: Original, directory: Path, *, as_is: bool, keep: bool, search: Iterable[str]) -> Iterator[Code]:
    """The run's code, restored below `directory`; the present code where it was in no repository, or has to do `as_is`.

    `search`: where Python looks for modules now. RunError where the code cannot be had.
    """
    commit = original.code.commit if original.code else None
    if not original.code and not as_is:
        raise RunError(
            f"{original.run.path} has no lineage/code.json, so what its code was is not known: it was removed, or "
            "a version of hpcexp made the run that kept none.\n"
            "Fix: --as-is trains it with the present code; hpcexp train --fresh … makes a run that can be reproduced."
        )
    if commit is None:
        yield _present(original, "not from a git repository: the present code")
        return
    try:
        top, below = _repository(original, commit)
        patch = _patch(original)
    except RunError:
        if not as_is:
            raise
        yield _present(original, "the present code (--as-is)")
        return
    copy = directory / _CODE
    try:
        _git(top, "worktree", "add", "--quiet", "--detach", str(copy), commit)
        is_whole = patch is None or _is_applied(patch, copy, original, as_is=as_is)
        project = copy / below
        link_data(original, [top / below, Path(original.plan.lineage["project"])], project)
        how = "" if patch is None else " and its patch" if is_whole else " without its patch"
        description = f"commit {commit[:12]}{how}"
        yield Code(project, description, is_restored=True, first=tuple(_counterparts(search, top, copy)))
    finally:
        if not keep:
            with signals_caught():
                _run_git(top, "worktree", "remove", "--force", "--force", str(copy))


def link_data(original: Original, projects: Iterable[Path], directory: Path) -> None:
    """Link in `directory` the files of data and configuration that the project has beside git."""
    plan, data = original.plan, read(original.run.lineage / "data.json", DataRecord)
    then = Path(plan.lineage["project"])
    files = (file.path for file in data.files)
    named = {*files, *flatten(identity_config(plan.config, plan.topology)).values()}
    for name in sorted(named):
        path = Path(os.path.normpath(name))
        if path.is_absolute():
            path = Path(os.path.relpath(path, then))
        if ".." not in path.parts:
            _link(path, projects, directory)


def _link(path: Path, projects: Iterable[Path], directory: Path) -> None:
    """The outermost directory of `path` that `directory` lacks."""
    for part in [*reversed(path.parents), path]:
        if not _exists(directory / part):
            there = next((project / part for project in projects if _exists(project / part)), None)
            if there is not None:
                (directory / part).symlink_to(there.resolve())
            return


def _exists(path: Path) -> bool:
    """Of what may be no path at all, nor able to be one."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def _present(original: Original, description: str) -> Code:
    """The code in the run's project directory, or here."""
    then = Path(original.plan.lineage["project"])
    return Code(then if then.is_dir() else Path.cwd(), description, is_restored=False)


def _repository(original: Original, commit: str) -> tuple[Path, Path]:
    """The checkout that has the commit, and the project in it: the run's, or the current one."""
    seen = []
    for project in dict.fromkeys((Path(original.plan.lineage["project"]), Path.cwd())):
        found = _run_git(project, "rev-parse", "--show-toplevel") if project.is_dir() else None
        if found is None or found.returncode:
            continue
        top = Path(found.stdout.strip())
        if _run_git(top, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return top, project.resolve().relative_to(top.resolve())
        seen.append(top)
    remote = original.code and original.code.remote
    where = f"{' and '.join(map(str, seen))} {'has' if len(seen) == 1 else 'have'} no such commit" if seen else ""
    raise RunError(
        f"The commit {commit} of {original.name} is gone: "
        f"{where or original.plan.lineage['project'] + ' is no git repository any more'}.\n"
        f"Fix: {f'git fetch {remote} {commit}' if remote else 'fetch it from a clone that has it'}, or stand in a "
        "clone that has it; --as-is trains with the present code."
    )


def _patch(original: Original) -> Path | None:
    """The changes on top of the commit; None where there were none."""
    recorded = original.code and original.code.patch
    if not recorded:
        return None
    patch = member_path(original.run.lineage, recorded.file)
    if not patch.is_file() or sha256_of(patch) != recorded.sha256:
        state = "was changed" if patch.is_file() else "is gone"
        raise RunError(
            f"{patch} {state} since the run, so its code cannot be restored.\n"
            "Fix: have it back from a backup or the run's artifacts in MLflow; --as-is trains with the present code."
        )
    return patch


def _is_applied(patch: Path, copy: Path, original: Original, *, as_is: bool) -> bool:
    """Apply the patch; RunError where git refuses, unless the commit alone has to do."""
    done = _run_git(copy, "apply", "--whitespace=nowarn", str(patch.resolve()))
    if done.returncode and not as_is:
        raise RunError(
            f"The patch of {original.name} does not apply to its commit:\n{done.stderr.strip()}\n"
            "Fix: look at it; --as-is trains with the commit alone."
        )
    return done.returncode == 0


def _counterparts(search: Iterable[str], top: Path, copy: Path) -> Iterator[str]:
    """Places in the checkout that modules are found in now, as they are in the copy."""
    for directory in map(Path, search):
        if directory.is_absolute() and directory.resolve().is_relative_to(top.resolve()):
            there = copy / directory.resolve().relative_to(top.resolve())
            if there.is_dir():
                yield str(there)


def _git(directory: Path, *arguments: str) -> None:
    done = _run_git(directory, *arguments)
    if done.returncode:
        raise RunError(
            f"git {' '.join(arguments)} in {directory} was refused:\n{done.stderr.strip()}\nFix: what it says."
        )


def _run_git(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in _OF_GIT}
    try:
        return subprocess.run(git_command(directory, *arguments), capture_output=True, text=True, check=False, env=env)
    except OSError as e:
        raise RunError(f"git cannot be run ({e.strerror}), and the run's code is a commit.\nFix: install it.") from e
