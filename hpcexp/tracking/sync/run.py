"""One run and its upload, as the process beside a run, the one beside a sweep and `hpcexp sync` use it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec.structs import replace as set_fields

from hpcexp.errors import InUseError, RunError
from hpcexp.files.locks import held, held_within
from hpcexp.files.untrusted import folders_problem, open_append
from hpcexp.plan import load_plan
from hpcexp.rundir import RecordDir, RunDir
from hpcexp.runs.records.files import write
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.runs.records.sync import Membership
from hpcexp.status.state import supervisor_alive
from hpcexp.tracking.mlflow.store import Stores, is_refusal, problem_of
from hpcexp.tracking.plots.run_plots import are_drawn, draw_pictures
from hpcexp.tracking.sync.destination import destined
from hpcexp.tracking.sync.upload import RunUpload

POLL_S = 0.5
SHARE = 5.0
"""Sending what running jobs log may take this part of the time: a fifth."""
_NICENESS = 10
"""Below training, yet not starved by it: MLflow's import alone takes 2 to 3 s of CPU."""


class RunSync:
    """A run that this process alone syncs. RunError where its plan cannot be read.

    `is_own`: whether it is of the command that this process serves. That names the run's server, and what fails is also
    a line of `sync.log`.
    """

    def __init__(self, run: RunDir, stores: Stores, sweep: Membership | None = None, *, is_own: bool = True) -> None:
        self.run = run
        if (
            problem := folders_problem(run.path, [run.logs.name, run.plots.name, run.lineage.name, run.media.name])
        ) is not None:
            raise RunError(problem)
        self.plan = destined(run)
        if is_own:
            stores.name(load_plan(run.plan).tracking_uri)
        self._upload = None if self.plan.tracking_uri is None else RunUpload(run, self.plan, stores, sweep)
        self._has_pictures = self.plan.settings.run.pictures
        self._is_drawn = False
        self._is_own = is_own
        self.is_refused = False
        """Whether the server's accounts stand against the last that was tried."""

    @property
    def uri(self) -> str | None:
        """Where it goes; None where it is not tracked."""
        return None if self._upload is None else self._upload.uri

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return read_status(self.run).state.is_final

    @property
    def is_undrawn(self) -> bool:
        """Whether the run has ended and this process has not tried to draw its pictures."""
        return self._has_pictures and not self._is_drawn and self.is_over

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do for what the directory holds now."""
        if self._upload is None:
            return self.is_over and (are_drawn(self.run) or not self._has_pictures)
        return self._upload.is_complete

    @property
    def is_behind(self) -> bool:
        """Whether there is more than one batch of metrics to be sent."""
        return self._upload is not None and self._upload.is_behind

    def has_ended(self, *, is_orphan: bool) -> bool:
        """Whether the run is over; one that nobody is left to end is over as `killed`."""
        end_if_abandoned(self.run, "run", is_orphan=is_orphan)
        return self.is_over

    def send(self) -> float:
        """Send the next metrics; the seconds that took, not counting the first connection."""
        if self._upload is None:
            return 0.0
        self._upload.start()
        began = time.monotonic()
        self._upload.send_metrics()
        return time.monotonic() - began

    def send_rest(self) -> None:
        """Send everything but the pictures."""
        if self._upload is not None:
            self._upload.finish()

    def complete(self) -> None:
        """Send everything; of a run that has ended also its pictures."""
        self.send_rest()
        if self.is_over:
            self.draw()
            if self._upload is not None:
                self._upload.add_pictures()

    def draw(self) -> None:
        """Draw the pictures of a run that has ended; a failure is logged and hinders nothing."""
        if not self.is_undrawn:
            return
        self._is_drawn = True
        try:
            draw_pictures(self.run, f"{self.plan.experiment} · {self.plan.name}")
        except Exception as e:  # noqa: BLE001 - a picture is worth no run
            say(f"pictures of {self.plan.name} could not be drawn: {type(e).__name__}: {e}")

    def attempt(self, step: Callable[[], object]) -> str | None:
        """Run one step; the problem, or None."""
        try:
            step()
        except Exception as e:  # noqa: BLE001 - whatever a server or a database does must not reach the run
            return self.failed(e)
        return None

    def failed(self, error: BaseException) -> str:
        """Store in the run directory and log why something could not be sent; returns that."""
        problem, self.is_refused = problem_of(error, self.plan.tracking_uri or ""), is_refusal(error)
        if self._is_own:
            say(f"{self.plan.name}: {problem}")
        if self._upload is not None:
            self._upload.failed(problem)
        return problem


def end_if_abandoned(record: RecordDir, what: str, *, is_orphan: bool) -> None:
    """Write the final state that a dead supervisor could not, unless another one has resumed the run by now.

    `is_orphan`: the supervisor is known to be gone, where its process cannot be looked at.
    """
    if not _is_abandoned(record, is_orphan=is_orphan):
        return
    path = record.path.resolve()
    try:
        with held(path.parent / f".{path.name}.lock", f"the {what} is continued by"):
            status = read_status(record)
            if not status.state.is_final and supervisor_alive(record, status) is not True:
                cause, took_s = f"the process that supervised the {what} died", _until_last_beat(record)
                ended = set_fields(status, state=RunState.KILLED, ended=time.time(), took_s=took_s, cause=cause)
                write(record.status, ended)
                if isinstance(record, RunDir):
                    record.beat.unlink(missing_ok=True)
    except InUseError:
        return


def alone(record: RecordDir, timeout_s: float) -> AbstractContextManager[None]:
    """Held by the one process that syncs a directory; InUseError names it, if it still does after `timeout_s`."""
    return held_within(timeout_s, record.sync_lock, _being_synced(record))


def alone_in_turn(record: RecordDir) -> AbstractContextManager[None]:
    """`alone`, once another process that syncs the directory has ended; says that it waits for it."""

    def say_so(holder: InUseError) -> None:
        who = str(holder).partition("\n")[0].removesuffix(".")
        print(f"{who}: waiting for it (Ctrl-C leaves it to that process).", file=sys.stderr, flush=True)

    return held_within(math.inf, record.sync_lock, _being_synced(record), say_so)


def _being_synced(record: RecordDir) -> str:
    return f"{record.path} is being synced by"


def settle(record: RecordDir) -> None:
    """Lower this process's priority below training's, and write to `sync.log`."""
    _step_back()
    # Ctrl-C is for the supervisor: it ends the run, and the run's end ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    record.logs.mkdir(parents=True, exist_ok=True)
    log = open_append(record.logs / "sync.log", 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _step_back() -> None:
    """Let the training have the cores.

    Between sessions Linux shares them out by session (sched(7), autogroup), as a desktop is to stay usable beside a
    build: there a process's own niceness does nothing against ranks, which lead sessions of theirs.
    """
    os.nice(_NICENESS)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no such kernel
            Path("/proc/self/autogroup").write_text(str(_NICENESS))


def say(text: str) -> None:
    """Write a line to `sync.log`."""
    with contextlib.suppress(OSError):  # which may lie on a full disk
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _until_last_beat(record: RecordDir) -> float | None:
    """How long a supervisor lived of which nothing is known but its beat: both times are of the file server's clock."""
    if not isinstance(record, RunDir):
        return None
    try:
        return max(0.0, record.beat.stat().st_mtime - record.status.stat().st_mtime)
    except OSError:
        return None


def _is_abandoned(record: RecordDir, *, is_orphan: bool) -> bool:
    """Whether nobody is left to write the final state."""
    status = read_status(record)
    if status.state is not RunState.RUNNING:
        return is_orphan and not status.state.is_final
    alive = supervisor_alive(record, status)
    return is_orphan if alive is None else not alive
