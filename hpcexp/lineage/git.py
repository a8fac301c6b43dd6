"""How git is called in a checkout that somebody else may have configured: it starts no program that is named there."""

from __future__ import annotations

from pathlib import Path

_PLAIN = (
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
)
"""A monitor of files and hooks are programs, which `.git/config` and `.git/hooks` name."""


def git_command(place: Path, *arguments: str) -> list[str]:
    """git with these arguments, as if called in `place`."""
    return ["git", "-C", str(place), "--no-optional-locks", *_PLAIN, *arguments]
