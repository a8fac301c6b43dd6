"""What a checkout has beside its commit: one patch for `git apply`, without secrets and big files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hpcexp.lineage.git import git_command
from hpcexp.redaction import has_secret

FILE_LIMIT = 1 << 20
"""Bytes of a file that is kept."""
ALL_LIMIT = 10 << 20
"""Bytes of all that are kept."""
_NAMED = 100
"""Files that are named where they are left out."""
_TIMEOUT_S = 20
_SECRET_FILES = re.compile(
    r"(^|/)(\.env(\.[^/]*)?|\.netrc|\.pgpass|\.pypirc|\.npmrc|id_(rsa|dsa|ecdsa|ed25519)|credentials(\.\w+)?"
    r"|secrets?\.\w+|[^/]*\.(pem|key|p12|pfx|jks|keystore|kdbx))$",
    re.IGNORECASE,
)
_FROM_STDIN = ("--pathspec-from-file=-", "--pathspec-file-nul")
_PLAIN = (
    "--binary",
    "--no-renames",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
"""A patch as git makes it without the user's settings."""


@dataclass(frozen=True)
class Changes:
    """Uncommitted changes and untracked files."""

    patch: bytes = b""
    left_out: dict[str, str] = field(default_factory=dict)
    """File → why the patch does not have it."""
    problem: str = ""
    """Why nobody can tell what was changed."""


def uncommitted(project: Path, without: Path) -> Changes:
    """The changes since the commit that is checked out in `project`, but for what lies in `without`."""
    try:
        with TemporaryDirectory(prefix="hpcexp-") as scratch:
            return _uncommitted(project, without, Path(scratch))
    except subprocess.TimeoutExpired:
        return Changes(problem=f"git took more than {_TIMEOUT_S} s")
    except subprocess.CalledProcessError as e:
        said = e.stderr.decode(errors="replace").strip().splitlines()
        return Changes(problem=f"git: {said[0] if said else f'exit status {e.returncode}'}")
    except OSError as e:
        return Changes(problem=f"git cannot be run: {e.strerror}")


def _uncommitted(project: Path, without: Path, scratch: Path) -> Changes:
    places = _git(project, "rev-parse", "--show-toplevel", "--git-path", "index", "--git-path", "objects")
    top, index, objects = (project / os.fsdecode(line) for line in places.splitlines())
    status = _git(top, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
    changed = {os.fsdecode(entry[3:]): entry[:2] == b"??" for entry in status.split(b"\0") if entry}
    changed = {path: is_new for path, is_new in changed.items() if not (top / path).is_relative_to(without)}
    left_out = dict(_refused(top, changed))
    # An index of our own, in which new files are to be added: git then shows them as it shows changes.
    if index.exists():
        shutil.copy2(index, scratch / "index")  # with its time, by which git knows what was edited just after
    env = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.resolve()),
    }
    if new := [path for path, is_new in changed.items() if is_new and path not in left_out]:
        names = b"\0".join(map(os.fsencode, new))
        _git(top, "--literal-pathspecs", "add", "-N", *_FROM_STDIN, given=names, env=env)
    hidden = [f":(exclude,top,literal){path}" for path in left_out if not changed[path]]
    patch = _git(top, "-c", "core.quotePath=false", "diff", "HEAD", *_PLAIN, "--", ".", *hidden, env=env)
    return _without_secrets(patch, left_out, os.fsencode(os.path.relpath(without, top)))


def _refused(top: Path, changed: dict[str, bool]) -> Iterator[tuple[str, str]]:
    """Files that are not kept, each with the reason."""
    room = ALL_LIMIT
    for path, is_new in changed.items():
        file = top / path
        if _SECRET_FILES.search(path):
            yield path, "a file of secrets, by its name"
        elif file.is_symlink() or not file.exists():
            continue
        elif file.is_dir():
            if is_new:
                yield path, "a git repository of its own"
        elif (size := file.stat().st_size) > FILE_LIMIT:
            yield path, f"{size:,} bytes; at most {FILE_LIMIT:,} are kept"
        elif size > room:
            yield path, f"{ALL_LIMIT:,} bytes of others are kept"
        elif has_secret(file.read_text(errors="replace")):
            yield path, "has what looks like a key in it"
        else:
            room -= size


def _without_secrets(patch: bytes, left_out: dict[str, str], without: bytes) -> Changes:
    """A patch shows what was taken away as well, and tracked files may lie where runs do."""
    kept = []
    for section in re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE):
        header = re.match(rb'diff --git "?a/(.*?)"? "?b/', section)
        name = header[1] if header else b""
        if name.startswith(without + b"/"):
            continue
        if has_secret(section.decode(errors="replace")):
            left_out[os.fsdecode(name)] = "had what looks like a key in it"
        else:
            kept.append(section)
    more = len(left_out) - _NAMED
    named = dict(list(left_out.items())[:_NAMED])
    return Changes(b"".join(kept), {**named, "…": f"{more:,} more"} if more > 0 else named)


def _git(place: Path, *arguments: str, given: bytes | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """What git prints; CalledProcessError where it refuses."""
    command = git_command(place, *arguments)
    around = {**os.environ, **(env or {})}
    return subprocess.run(command, input=given, capture_output=True, timeout=_TIMEOUT_S, check=True, env=around).stdout
