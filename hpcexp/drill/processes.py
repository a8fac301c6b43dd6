"""Processes of a run as the kernel shows them: which they are, and stopping them for a moment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from hpcexp.rundir import RunDir

_PROC = Path("/proc")
_WAIT_S = 0.0005


def ranks_of(run: RunDir, world_size: int, but: Collection[int] = ()) -> dict[int, int]:
    """Rank → pid of the processes that write the run's logs and lead a session, without those in `but`."""
    logs = {str(run.rank_log(rank)): rank for rank in range(world_size)}
    found: dict[int, int] = {}
    for pid, output in _outputs():
        rank = logs.get(output)
        if rank is not None and pid not in but and _field(pid, 3) == str(pid):
            found.setdefault(rank, pid)
    return found


def freeze(pids: Collection[int]) -> None:
    """Stop the sessions of `pids`, and return when these themselves stand still or are gone."""
    for pid in pids:
        _signal_session(pid, signal.SIGSTOP)
    while any(_field(pid, 0) not in ("T", "t", "Z", "X", None) for pid in pids):
        time.sleep(_WAIT_S)


def thaw(pids: Collection[int]) -> None:
    """Let the processes continue."""
    for pid in pids:
        _signal_session(pid, signal.SIGCONT)


def end_all_in(directory: Path) -> None:
    """Kill every process whose output goes to a file in `directory`, and return when they are gone."""
    while pids := [pid for pid, output in _outputs() if Path(output).is_relative_to(directory) and pid != os.getpid()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_WAIT_S)


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
