"""The process beside a run that syncs its directory to MLflow.

`python -m hpcexp.tracking.sync.run_process RUN_DIR [--once]`; `sync` does the latter from within a process.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import stat
import sys
import time
from pathlib import Path

from hpcexp.errors import HpcexpError, RunError
from hpcexp.plan import load_plan
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.records.sync import Membership
from hpcexp.status.state import is_driven
from hpcexp.tracking.mlflow.credentials import Named
from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run import POLL_S, SHARE, RunSync, alone, alone_in_turn, end_if_abandoned, say, settle
from hpcexp.tracking.sync.sweep_upload import SweepUpload, members
from hpcexp.tracking.sync.unreachable_servers import backoff


def sync(path: Path, stores: Stores | None = None, sweep: Membership | None = None) -> str | None:
    """Sync what MLflow lacks of the run in `path`; what hinders it, or None. Any number of times, same result.

    RunError where there is no run. Waits for another process that syncs it, and says so.
    """
    run = RunDir(path)
    load_plan(run.plan)
    with alone_in_turn(run):
        run_sync = RunSync(run, stores or Stores(), sweep, is_own=False)
        if run_sync.is_complete:
            return None
        run_sync.has_ended(is_orphan=False)
        return run_sync.attempt(run_sync.complete)


def sync_sweep(path: Path, stores: Stores) -> str | None:
    """Sync what MLflow lacks of the sweep in `path`, but not its runs; what hinders it, or None.

    Waits for another process that syncs it, and says so.
    """
    sweep = SweepDir(path)
    with alone_in_turn(sweep):
        if not is_driven(sweep):
            end_if_abandoned(sweep, "sweep", is_orphan=False)
        parent = SweepUpload(sweep, stores)
        if parent.uri is None:
            _go_with_any_run(parent, sweep, stores)
        if parent.uri is None or parent.is_complete:
            return None
        try:
            parent.start()
            parent.finish()
        except Exception as e:  # noqa: BLE001 - as above
            return parent.failed(e)
    return None


def follow(path: Path) -> str | None:
    """Sync the run in `path` while it runs and once it has ended; what hindered the last upload, or None."""
    run = RunDir(path)
    with alone(run, math.inf):
        run_sync = RunSync(run, Stores(Named(lambda: ())))
        _accompany(run_sync)
        run_sync.attempt(run_sync.send_rest)
        run_sync.draw()
        return _insist(run_sync)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: synced; 1: not everything; 2: there is nothing to sync from."""
    parser = argparse.ArgumentParser(
        prog="python -m hpcexp.tracking.sync.run_process", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--once", action="store_true", help="sync what is there, then end")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir.absolute()
    try:
        if arguments.once:
            problem = sync(run_dir, Stores(Named(lambda: ())))
        else:
            load_plan(RunDir(run_dir).plan)
            settle(RunDir(run_dir))
            # The directory itself, as launch may give its path to a new try while this one is still synced.
            os.chdir(run_dir)
            problem = follow(Path())
    except HpcexpError as e:
        print(e, file=sys.stderr)
        return 2
    if problem is not None:
        say(f"not synced: {problem}")
        return 1
    return 0


def _go_with_any_run(parent: SweepUpload, sweep: SweepDir, stores: Stores) -> None:
    """Have a sweep go where its runs go, of which no sync process could tell."""
    for run, place in members(sweep):
        with contextlib.suppress(RunError):
            run_sync = RunSync(run, stores, place, is_own=False)
            if run_sync.uri is not None:
                parent.go_with(run_sync.plan, run_sync.uri)
                return


def _accompany(run_sync: RunSync) -> None:
    """Send metrics until the run has ended or has lost its supervisor."""
    pipe = _stdin_pipe()
    next_s, failures = 0.0, 0
    while not run_sync.has_ended(is_orphan=pipe is not None and pipe.is_closed):
        if time.monotonic() >= next_s:
            spent = _sent(run_sync)
            failures = failures + 1 if spent is None else 0
            is_refused = spent is None and run_sync.is_refused
            next_s = time.monotonic() + max(SHARE * (spent or 0.0), backoff(failures, is_refused=is_refused))
        _wait(pipe)


def _sent(run_sync: RunSync) -> float | None:
    """Seconds that the next metrics took; None where they could not be sent."""
    try:
        return run_sync.send()
    except Exception as e:  # noqa: BLE001 - whatever a server or a database does must not reach the run
        run_sync.failed(e)
        return None


def _insist(run_sync: RunSync) -> str | None:
    """Sync the rest, trying again for `tracking.wait_s` unless the server's accounts stand against it."""
    deadline = time.monotonic() + float(run_sync.plan.settings.tracking.wait_s)
    failures = 0
    while (problem := run_sync.attempt(run_sync.complete)) is not None:
        failures += 1
        pause = backoff(failures)
        if run_sync.is_refused or time.monotonic() + pause > deadline:
            return problem
        time.sleep(pause)
    return None


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
        time.sleep(POLL_S)
    else:
        pipe.wait(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
