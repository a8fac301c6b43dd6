"""A rank's process and how a fresh one is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpcexp.files.untrusted import open_append


@dataclass(frozen=True)
class Start:
    """Everything that a rank's process gets."""

    run_dir: str
    env: Mapping[str, str]
    log: Path
    """Receives its output and errors."""
    project: Path
    """Its working directory, whose modules it can import."""
    fds: Mapping[str, int]
    """Environment variable (of `RankEnv`) → open file; the rank's own number of it is the variable's value."""


class Process(Protocol):
    """What a supervisor needs from a rank's process."""

    pid: int

    def poll(self) -> int | None:
        """Exit status, a signal's number negated; None while it runs."""

    def wait(self) -> object:
        """Return when it has ended."""


def start_fresh(start: Start, python: str = sys.executable) -> Process:
    """Start a new interpreter."""
    with os.fdopen(open_append(start.log), "ab") as out:
        return subprocess.Popen(
            [python, "-m", "hpcexp.job", start.run_dir],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**start.env, **{name: str(fd) for name, fd in start.fds.items()}},
            pass_fds=tuple(start.fds.values()),
            cwd=start.project,
            start_new_session=True,
        )


def signal_session(pid: int, number: int) -> None:
    """Signal a process and the children in its session, or the process alone if it has not opened one yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        signal_one(pid, number)


def signal_one(pid: int, number: int) -> None:
    """Signal a process, which may have ended."""
    try:
        os.kill(pid, signal.Signals(number))
    except ProcessLookupError:
        return
