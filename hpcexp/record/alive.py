"""Whether the process that supervises a run is still there."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.plan import Plan, load_plan, load_signature
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.records import DriverRecord, RunState, Status, read_or_none, read_status, read_summary

_SLACK_S = 60.0
"""How far the clocks of `status.json` and the kernel may be apart."""
_STALE_S = 60.0
"""A driver on another machine that has not touched its file for so long is gone."""


def supervisor_alive(status: Status | DriverRecord) -> bool | None:
    """Whether the process that a record names lives; None where this host cannot tell."""
    if status.pid is None or (status.host is not None and status.host != socket.gethostname()):
        return None
    return _is_process(status.pid, status.started)


def current_state(status: Status) -> RunState:
    """The state of a run, where one that lost its supervisor without saying so is `killed`."""
    is_lost = status.state is RunState.RUNNING and supervisor_alive(status) is False
    return RunState.KILLED if is_lost else status.state


def is_driven(sweep: SweepDir) -> bool:
    """Whether some driver is at work on a sweep: each has a file in `drivers/`, and touches it while it lives."""
    return any(map(_is_driver, (sweep.path / "drivers").glob("*.json")))


def is_done(plan: Plan) -> bool:
    """Whether a run of the plan's identity has finished in its directory."""
    run = RunDir(Path(plan.run_dir))
    return current_state(read_status(run)) is RunState.FINISHED and load_signature(run.plan) == plan.signature


def damage(plan: Plan) -> str:
    """Why what the plan's run came to cannot be read; empty where it can, or has not run."""
    run = RunDir(Path(plan.run_dir))
    try:
        if is_done(plan):
            read_summary(run)
        elif run.plan.exists():
            load_plan(run.plan)
    except RunError as e:
        return str(e)
    return ""


def _is_driver(file: Path) -> bool:
    try:
        record = read_or_none(file, DriverRecord)
        alive = supervisor_alive(record) if record else False
        return time.time() - file.stat().st_mtime < _STALE_S if alive is None else alive
    except (OSError, RunError):
        return False


def _is_process(pid: int, started: float | None) -> bool:
    """Whether `pid` runs and is not a later process that got the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        # proc(5): field 3 is the state, field 22 the start in clock ticks since boot; field 2 may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return True
    if fields[0] in "ZX":
        return False
    age_s = uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return started is None or time.time() - age_s <= started + _SLACK_S
