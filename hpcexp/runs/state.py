"""Whether somebody is at work on a run or a sweep."""

from __future__ import annotations

from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.plan import Plan, load_plan, load_signature
from hpcexp.rundir import RecordDir, RunDir, SweepDir
from hpcexp.runs.beat import silence
from hpcexp.runs.clock import running_s
from hpcexp.runs.owner import Owner
from hpcexp.runs.records import DriverRecord, Owned, RunState, Status, read_or_none, read_status, read_summary
from hpcexp.text.formatting import duration


def is_alive(record: Owned, beat: Path) -> bool | None:
    """Whether the owner that a record names is at work; None where that is not known, which is not dead.

    Its process decides where it can be seen. From elsewhere its beat does, by the file server's clock.
    """
    owner = Owner.of(record)
    if owner is None:
        return None
    if (runs := owner.is_running()) is not None:
        return runs
    if (last := silence(beat)) is not None:
        return last.is_alive
    return False if owner.was_rebooted else None


def supervisor_alive(record: RecordDir, status: Status) -> bool | None:
    """Whether the supervisor of a run, or any driver of a sweep, lives; None where that is not known."""
    if isinstance(record, RunDir):
        return is_alive(status, record.beat)
    drivers = [_is_driver(file) for file in _drivers(record)]
    owner = Owner.of(status)
    # The driver that wrote the status may be gone, and others at work.
    runs = owner.is_running() if owner else None
    return True if any(drivers) or runs else False if drivers else runs


def current_state(record: RecordDir, status: Status | None = None) -> RunState:
    """The state of a run or sweep, where one that lost its owner without saying so is `killed`."""
    status = read_status(record) if status is None else status
    is_lost = status.state is RunState.RUNNING and supervisor_alive(record, status) is False
    return RunState.KILLED if is_lost else status.state


def doubt_s(run: RunDir, status: Status) -> float:
    """Seconds that a run must seem dead before it is taken over: in which a supervisor that lives would show it."""
    owner = Owner.of(status)
    if status.state is not RunState.RUNNING or owner is None or owner.is_running() is not None:
        return 0.0
    return last.confirm_s if (last := silence(run.beat)) is not None else 0.0


def silence_text(run: RunDir, status: Status) -> str:
    """That a run which has not ended was not heard of for long; empty where its process can be seen, or it lives."""
    owner = Owner.of(status)
    if status.state is not RunState.RUNNING or owner is None or owner.is_running() is not None:
        return ""
    if (last := silence(run.beat)) is None or last.is_alive:
        return ""
    clock = "" if last.is_certain else ", by the clock of this machine"
    return f"no sign of life from {owner} for {duration(abs(last.seconds))}{clock}"


def elapsed_s(state: RunState, status: Status) -> float | None:
    """Seconds that a run took, or has been running for; None where that is not known."""
    if status.ended is not None:
        return status.seconds
    if state is not RunState.RUNNING:
        return None
    owner = Owner.of(status)
    return running_s(status.started, status.started_boot_s, is_here=owner is not None and owner.is_of_this_boot)


def is_driven(sweep: SweepDir) -> bool:
    """Whether some driver is at work on a sweep, or may be: each has a file in `drivers/`, and touches it."""
    return any(map(_is_driver, _drivers(sweep)))


def is_done(plan: Plan) -> bool:
    """Whether a run of the plan's identity has finished in its directory."""
    run = RunDir(Path(plan.run_dir))
    return current_state(run) is RunState.FINISHED and load_signature(run.plan) == plan.signature


def damage(plan: Plan) -> str:
    """Why the result of the plan's run cannot be read; empty where it can, or there is none."""
    run = RunDir(Path(plan.run_dir))
    try:
        if is_done(plan):
            read_summary(run)
        elif run.plan.exists():
            load_plan(run.plan)
    except RunError as e:
        return str(e)
    return ""


def _drivers(sweep: RecordDir) -> list[Path]:
    return list((sweep.path / "drivers").glob("*.json"))


def _is_driver(file: Path) -> bool:
    try:
        record = read_or_none(file, DriverRecord)
        return record is not None and is_alive(record, file) is not False
    except (OSError, RunError):
        return False
