"""The process beside a run that delivers its directory to MLflow.

`python -m hpcexp.record.shipper RUN_DIR [--once]`; `sync` does the latter from within a process.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import stat
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from hpcexp.errors import HpcexpError, RunError
from hpcexp.plan import Plan, load_plan
from hpcexp.record.alive import supervisor_alive
from hpcexp.record.delivery import Delivery
from hpcexp.record.pictures import draw_pictures
from hpcexp.record.store import held_within, problem_of
from hpcexp.rundir import FINAL_STATES, RunDir, held, write_json

_NICENESS = 10
"""Below training, yet not starved by it: MLflow's import alone takes 2 to 3 s of CPU."""
_POLL_S = 0.5
_SHARE = 5.0
"""Delivering may take this part of the time: a fifth."""
_MAX_BACKOFF_S = 30.0
_SYNC_LOCK_S = 5.0


def sync(path: Path) -> str | None:
    """Deliver what MLflow lacks of the run in `path`; what hinders it, or None. Any number of times, same result.

    RunError where there is no run, or where a shipper is at work on it.
    """
    run = RunDir(path)
    plan = load_plan(run.plan)
    with _alone(run, _SYNC_LOCK_S):
        delivery = None if plan.tracking_uri is None else Delivery(run, plan)
        if delivery is not None and delivery.is_complete:
            return None
        if _abandoned(run, is_orphan=False):
            _mark_killed(run)
        _draw(run, plan)
        return None if delivery is None else _attempt(delivery, plan)


def follow(path: Path) -> str | None:
    """Deliver the run in `path` while it goes on and once it has ended; what hindered the last of it, or None."""
    run = RunDir(path)
    plan = load_plan(run.plan)
    with _alone(run, math.inf):
        delivery = None if plan.tracking_uri is None else Delivery(run, plan)
        _accompany(run, plan, delivery)
        _draw(run, plan)
        return None if delivery is None else _insist(delivery, plan)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: delivered; 1: not everything; 2: there is nothing to deliver from."""
    parser = argparse.ArgumentParser(
        prog="python -m hpcexp.record.shipper", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--once", action="store_true", help="deliver what is there, then end")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir.absolute()
    try:
        if arguments.once:
            problem = sync(run_dir)
        else:
            load_plan(RunDir(run_dir).plan)
            _settle(RunDir(run_dir))
            # The directory itself, as launch may give its path to a new try while this one is still delivered.
            os.chdir(run_dir)
            problem = follow(Path())
    except HpcexpError as e:
        print(e, file=sys.stderr)
        return 2
    if problem is not None:
        _say(f"not delivered: {problem}")
        return 1
    return 0


def _settle(run: RunDir) -> None:
    """Step back behind the training, and write to the shipper's own log."""
    os.nice(_NICENESS)
    # Ctrl-C is for the supervisor: it ends the run, and the run's end ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run.logs.mkdir(parents=True, exist_ok=True)
    log = os.open(run.logs / "shipper.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _accompany(run: RunDir, plan: Plan, delivery: Delivery | None) -> None:
    """Send metrics until the run has ended or has lost its supervisor."""
    pipe = _stdin_pipe()
    next_s, failures = 0.0, 0
    while run.read_status().get("state") not in FINAL_STATES:
        if _abandoned(run, is_orphan=pipe is not None and pipe.is_closed):
            _mark_killed(run)
            if run.read_status().get("state") in FINAL_STATES:
                return
        if delivery is not None and time.monotonic() >= next_s:
            spent = _send(delivery, plan)
            failures = failures + 1 if spent is None else 0
            next_s = time.monotonic() + max(_SHARE * (spent or 0.0), _backoff(failures))
        _wait(pipe)


def _insist(delivery: Delivery, plan: Plan) -> str | None:
    """Deliver the rest, trying again for `tracking.wait_s`."""
    deadline = time.monotonic() + float(plan.config["tracking"]["wait_s"])
    failures = 0
    while (problem := _attempt(delivery, plan)) is not None:
        failures += 1
        pause = _backoff(failures)
        if time.monotonic() + pause > deadline:
            return problem
        time.sleep(pause)
    return None


def _attempt(delivery: Delivery, plan: Plan) -> str | None:
    try:
        delivery.finish()
    except Exception as e:  # noqa: BLE001 - whatever a server or a database does must not reach the run
        return _failed(delivery, plan, e)
    return None


def _send(delivery: Delivery, plan: Plan) -> float | None:
    """Seconds that the next metrics took, not counting the first connection; None where they could not be sent."""
    try:
        delivery.start()
        began = time.monotonic()
        delivery.send_metrics()
    except Exception as e:  # noqa: BLE001 - as above
        _failed(delivery, plan, e)
        return None
    return time.monotonic() - began


def _failed(delivery: Delivery, plan: Plan, error: Exception) -> str:
    problem = problem_of(error, plan.tracking_uri or "")
    delivery.failed(problem)
    _say(problem)
    return problem


def _draw(run: RunDir, plan: Plan) -> None:
    """Pictures, once the run has ended; a run is not undelivered for want of them."""
    is_wanted = plan.config["run"].get("pictures", True)
    if not is_wanted or run.read_status().get("state") not in FINAL_STATES:
        return
    try:
        draw_pictures(run, f"{plan.experiment} · {plan.name}")
    except Exception as e:  # noqa: BLE001 - as above
        _say(f"pictures could not be drawn: {type(e).__name__}: {e}")


def _abandoned(run: RunDir, is_orphan: bool) -> bool:
    """Whether nobody is left to write the run's final state."""
    status = run.read_status()
    if status.get("state") != "running":
        return is_orphan and status.get("state") not in FINAL_STATES
    alive = supervisor_alive(status)
    return is_orphan if alive is None else not alive


def _mark_killed(run: RunDir) -> None:
    """Write the final state that the dead supervisor could not, unless another one goes on with the run by now."""
    path = run.path.resolve()
    try:
        with held(path.parent / f".{path.name}.lock", "the run is continued by"):
            status = run.read_status()
            if status.get("state") not in FINAL_STATES and supervisor_alive(status) is not True:
                cause = "the process that supervised the run died"
                write_json(run.status, {**status, "state": "killed", "ended": time.time(), "cause": cause})
    except RunError:
        return


def _alone(run: RunDir, timeout_s: float) -> AbstractContextManager[None]:
    """Held by the one process that delivers `run`."""
    return held_within(timeout_s, run.path / ".shipper.lock", f"{run.path} is being delivered by")


def _backoff(failures: int) -> float:
    return min(_POLL_S * 2.0**failures, _MAX_BACKOFF_S)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


class _Pipe:
    """The end of a pipe that the supervisor holds open while it lives."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_closed = False

    def wait(self, timeout_s: float) -> None:
        """Return after `timeout_s`, or as soon as the supervisor has let go."""
        readable, _, _ = select.select([self._fd], [], [], timeout_s)
        if readable and not os.read(self._fd, 4096):
            self.is_closed = True


def _stdin_pipe() -> _Pipe | None:
    try:
        return _Pipe(0) if stat.S_ISFIFO(os.fstat(0).st_mode) else None
    except OSError:
        return None


def _wait(pipe: _Pipe | None) -> None:
    if pipe is None or pipe.is_closed:
        time.sleep(_POLL_S)
    else:
        pipe.wait(_POLL_S)


if __name__ == "__main__":
    sys.exit(main())
