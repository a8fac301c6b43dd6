"""A directory that is its owner's alone: what keeps it from being so, and making it so."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OTHERS = 0o077


@contextmanager
def own_files() -> Iterator[None]:
    """What is made meanwhile is its owner's alone."""
    mask = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(mask)


def directory_problem(directory: Path) -> str | None:
    """Why `directory` could not be its owner's alone, and the way out; None where it can.

    It and all in it must be of the user who asks, and nobody else may put another in its place.
    """
    for above in directory.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return (
                f"{directory} is not safe: everybody may rename what is in {above}.\n"
                f"Fix: chmod o-w {above}, or another directory."
            )
    foreign = next((path for path, info in _all_in(directory) if info.st_uid != os.geteuid()), None)
    if foreign is None:
        return None
    owner = _name(foreign.lstat().st_uid)
    return (
        f"{foreign} belongs to {owner}, and {_name(os.geteuid())} is to keep it from all others.\n"
        f"Fix: run this as {owner}, or chown -R {_name(os.geteuid())} {directory}"
    )


def tighten(directory: Path) -> None:
    """Take every right to `directory` and what is in it from all but its owner."""
    for path, info in _all_in(directory):
        if info.st_mode & _OTHERS and not stat.S_ISLNK(info.st_mode):
            with suppress(FileNotFoundError):
                path.chmod(stat.S_IMODE(info.st_mode) & ~_OTHERS)


def _all_in(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The directory, then all in it, from the top; links are not followed."""
    yield directory, directory.stat()
    for place, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(place, name)
            with suppress(FileNotFoundError):
                yield path, path.lstat()


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
