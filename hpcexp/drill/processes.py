"""Processes of a run as the kernel shows them: which they are, and stopping them for a moment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.rundir import RunDir

_PROC = Path("/proc")
_WAIT_S = 0.0005
_PATIENCE_S = 60.0
"""The kernel stops and ends processes at once, unless one waits for a device or a file server."""


def ranks_of(run: RunDir, world_size: int, but: Collection[int] = ()) -> dict[int, int]:
    """Rank → pid of the processes that write the run's logs and lead a session, without those in `but`."""
    logs = {str(run.rank_log(rank)): rank for rank in range(world_size)}
    found: dict[int, int] = {}
    for pid, output in _outputs():
        rank = logs.get(output)
        if rank is not None and pid not in but and _field(pid, 3) == str(pid):
            found.setdefault(rank, pid)
    return found


def freeze(pids: Collection[int], patience_s: float = _PATIENCE_S) -> None:
    """Stop the sessions of `pids`, and return when these themselves stand still or are gone.

    RunError if one does neither for `patience_s`.
    """
    for pid in pids:
        _signal_session(pid, signal.SIGSTOP)
    deadline = time.monotonic() + patience_s
    while moving := [pid for pid in pids if _field(pid, 0) not in ("T", "t", "Z", "X", None)]:
        if time.monotonic() > deadline:
            raise RunError(_stubborn("do not stop", moving, "SIGSTOP", patience_s))
        time.sleep(_WAIT_S)


def thaw(pids: Collection[int]) -> None:
    """Let the processes continue."""
    for pid in pids:
        _signal_session(pid, signal.SIGCONT)


def end_all_in(directory: Path, patience_s: float = _PATIENCE_S) -> None:
    """Kill every process whose output goes to a file in `directory`, and return when they are gone.

    RunError if there still are some after `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while pids := [pid for pid, output in _outputs() if Path(output).is_relative_to(directory) and pid != os.getpid()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RunError(_stubborn(f"with output in {directory} do not end", pids, "SIGKILL", patience_s))
        time.sleep(_WAIT_S)


def _stubborn(what: str, pids: Collection[int], name: str, patience_s: float) -> str:
    numbers = sorted(pids)
    return (
        f"Processes {', '.join(map(str, numbers))} {what} within {patience_s:g} s of {name}: "
        "the kernel holds them, as while a file server is away, or something starts them again.\n"
        f"Fix: look at them with `ps -o pid,stat,wchan,args {' '.join(map(str, numbers))}`, then drill again."
    )


def _outputs() -> Iterator[tuple[int, str]]:
    """Pid and the file of its standard output, of every process of this user that has not ended."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), str((entry / "fd" / "1").readlink())


def _field(pid: int, number: int) -> str | None:
    """A field of proc(5)'s stat after the name: 0 the state, 3 the session; None where the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[number]
    except OSError:
        return None


def _signal_session(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
