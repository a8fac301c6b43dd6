"""Where every rank is, asked of faulthandler: it answers also from inside a call that never returns."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from hpcexp.files.untrusted import open_regular
from hpcexp.launch.base.rank_process import signal_one
from hpcexp.rundir import RunDir

STACK_SIGNAL = signal.SIGUSR2
"""On which a rank writes the stack of all its threads to its log."""
WAIT_S = 3.0
"""For ranks to write."""
POLL_S = 0.05


def stacks(pids: Mapping[int, int], run: RunDir) -> dict[int, str]:
    """Have every rank (rank → process) write its stacks into its log; the place that each main thread is in."""
    logs = {rank: run.rank_log(rank) for rank in pids}
    before = {rank: log.stat().st_size for rank, log in logs.items()}
    for pid in pids.values():
        signal_one(pid, STACK_SIGNAL)
    deadline, seen = time.monotonic() + WAIT_S, before
    while time.monotonic() < deadline:
        time.sleep(POLL_S)
        sizes = {rank: log.stat().st_size for rank, log in logs.items()}
        if sizes == seen and all(sizes[rank] > before[rank] for rank in pids):
            break
        seen = sizes
    return {
        rank: _place(logs[rank], before[rank]) or f"does not answer ({_state(pid)})"
        for rank, pid in sorted(pids.items())
    }


def _place(log: Path, start: int) -> str | None:
    """`function, file:line` of the innermost frame of the main thread, which faulthandler writes last."""
    with open_regular(log) as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    *_, main = re.split(r"^(?:Current thread|Thread) .*:$", text, flags=re.MULTILINE)
    frame = re.search(r'^  File "(.*)", line (\d+) in (.*)$', main, flags=re.MULTILINE)
    return f"{frame[3]}, {frame[1]}:{frame[2]}" if frame else None


def _state(pid: int) -> str:
    """What the kernel says of a process: a letter of proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "it is gone"
    names = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting in the kernel", "Z": "ended"}
    return names.get(fields[0], f"state {fields[0]}")
