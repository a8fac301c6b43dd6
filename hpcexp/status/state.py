"""Whether somebody is at work on a run or a sweep.

The owner's process decides where it can be seen, then its beat where that is young, then the launcher: a scheduler may
still have a job whose supervisor is silent. Nothing else asks whether a job lives.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from hpcexp.errors import RunError
from hpcexp.plan import Plan, load_plan, load_signature, load_whole
from hpcexp.rundir import RecordDir, RunDir, SweepDir
from hpcexp.runs.beat import silence
from hpcexp.runs.clock import running_s
from hpcexp.runs.mark import doubts
from hpcexp.runs.owner import Owner, is_alive
from hpcexp.runs.records.files import read_or_none
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.runs.records.sweep import DriverRecord
from hpcexp.targets.instantiate import on_path, resolve
from hpcexp.targets.source_code import is_packaged
from hpcexp.text.formatting import duration


class KnowsJobs(Protocol):
    """What readers ask of a launcher."""

    def is_alive(self, run: RunDir) -> bool | None:
        """Whether the job runs or will run; None if unknown, which is not dead.

        Asked where the supervisor's process cannot be seen and its beat is old or missing. A launcher that only starts
        supervisors answers by `hpcexp.runs.owner.is_alive`; one with a queue says True while that has the job.
        """


def supervisor_alive(record: RecordDir, status: Status) -> bool | None:
    """Whether a run, or any driver of a sweep, is at work; None if unknown."""
    if isinstance(record, RunDir):
        return _is_run_alive(record, status)
    drivers = [_is_driver(file) for file in _drivers(record)]
    owner = Owner.of(status)
    # The driver that wrote the status may be gone, and others at work.
    runs = owner.is_running() if owner else None
    return True if any(drivers) or runs else False if drivers else runs


def _is_run_alive(run: RunDir, status: Status) -> bool | None:
    owner = Owner.of(status)
    seen = is_alive(status, run.beat)
    if seen or (owner is not None and owner.is_running() is not None) or not run.plan.exists():
        return seen
    try:
        plan = load_whole(run)
    except RunError:  # damaged: it names nobody to ask
        return seen
    try:
        return _launcher_says(run, plan)
    except Exception:  # noqa: BLE001 - a user's launcher may raise anything: unknown
        return None


def _launcher_says(run: RunDir, plan: Plan) -> bool | None:
    """The answer of the run's launcher; None where that is code of somebody else, which is not imported for this."""
    launch = plan.settings.launch
    if not is_packaged(launch.target):
        if any(doubts(run, plan)):
            return None
        on_path(Path(plan.lineage["project"]))
    return _launcher(launch.target, json.dumps(launch.arguments)).is_alive(run)


@cache
def _launcher(target: str, arguments: str) -> KnowsJobs:
    """One for all jobs of a `launch` section, as it may ask its queue once for all of them."""
    found: Any = resolve(target, "launch")
    if not (isinstance(found, type) and hasattr(found, "is_alive")):
        raise RunError(f"launch._target_={target}: not a launcher.")
    launcher: KnowsJobs = found(**json.loads(arguments))
    return launcher


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


def silence_text(run: RunDir, status: Status, state: RunState) -> str:
    """That a run which has not ended was not heard of for long; empty where its process can be seen, or it lives.

    `state`: its current one.
    """
    owner = Owner.of(status)
    if status.state is not RunState.RUNNING or owner is None or owner.is_running() is not None:
        return ""
    if (last := silence(run.beat)) is None or last.is_alive:
        return ""
    clock = "" if last.is_certain else ", by the clock of this machine"
    kept = "; its launcher does not say that it ended" if last.is_certain and state is RunState.RUNNING else ""
    return f"no sign of life from {owner} for {duration(abs(last.seconds))}{clock}{kept}"


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
