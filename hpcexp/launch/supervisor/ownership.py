"""That a run's directory belongs to one attempt: its lock, its beat, and how a supervisor notices that it lost it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hpcexp.errors import InUseError, RunError
from hpcexp.files.atomic import write_json
from hpcexp.files.locks import held, held_within
from hpcexp.files.untrusted import read_text
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.beat import Beat, Silence, read_facts, silence
from hpcexp.runs.clock import boottime
from hpcexp.runs.owner import Owner
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.status.state import supervisor_alive

_MOMENT_S = 1.0
_POLL_S = 0.5


class TakenOverError(InUseError):
    """Another command has taken the run over while this one stood still."""


class Ownership:
    """What one attempt has of its run's directory, from its first file to its final state."""

    def __init__(self, run: RunDir, timeout_s: float) -> None:
        self.owner = Owner.this()
        self._run, self._beat = run, Beat(run.beat, timeout_s)
        self.stop: list[int] = []
        """Signals that `ask_to_end` has sent; grows as they arrive."""
        self._has_begun = self._is_lost = False
        self._next_look = 0.0

    def begin(self) -> None:
        """Show that this attempt has the directory, unless it does already. OSError where that cannot be written."""
        if not (self._has_begun and read_facts(self._run.beat).get("token") == self.owner.token):
            self._run.cancel.unlink(missing_ok=True)  # it was meant for an earlier attempt
            self._beat.stop()
            self._beat.start({"token": self.owner.token})
            self._has_begun = True

    def check(self) -> None:
        """Look now and then who has the directory; TakenOverError where that is another attempt."""
        if not self._is_lost and boottime() < self._next_look:
            return
        self._next_look = boottime() + self._beat.every_s
        if not self.stop and self._run.cancel.exists():
            self.stop.append(signal.SIGTERM)
        if self.is_lost():
            raise TakenOverError(
                f"{self._run.path} was taken over by {self._holder()} while this command was suspended for more than "
                f"{self._beat.timeout_s:g} s (launch.beat_timeout_s). Its ranks were ended, and nothing was written "
                "since.\nFix: nothing; the other command resumes from the last checkpoint (`hpcexp show`)."
            )

    def is_lost(self) -> bool:
        """Whether another attempt has the directory. What cannot be read says nothing."""
        with contextlib.suppress(OSError, RunError):
            self._is_lost = self._is_lost or self._looks_lost()
        return self._is_lost

    def end(self) -> None:
        """Be silent. Where the final state could not be written, the old beat tells others that nobody is at work."""
        self._beat.stop()
        with contextlib.suppress(OSError, RunError):
            status = read_status(self._run)
            is_left = status.state is RunState.RUNNING and status.token == self.owner.token
            if not (is_left or self.is_lost()):
                for file in (self._run.beat, self._run.cancel):
                    file.unlink(missing_ok=True)
                self._run.beat.parent.rmdir()

    def _looks_lost(self) -> bool:
        holder = read_facts(self._run.beat).get("token")
        if holder is not None:
            return bool(holder != self.owner.token)
        # Whoever has finished the run in the meantime has removed its beat, as has somebody who tidied up.
        status = read_status(self._run)
        if status.token not in (None, self.owner.token):
            return True
        if status.token is not None and self._has_begun:
            write_json(self._run.beat, {"token": self.owner.token, "timeout_s": self._beat.timeout_s})
        return False

    def _holder(self) -> str:
        with contextlib.suppress(OSError, RunError):
            owner = Owner.of(read_status(self._run))
            if owner is not None and owner.token != self.owner.token:
                return str(owner)
        return "another command"


def ask_to_end(run: RunDir) -> None:
    """Have the supervisor of a run end it with a checkpoint, on whatever machine it is. It looks every few seconds."""
    try:
        run.cancel.touch()
    except OSError as e:
        raise RunError(
            f"{run.cancel} cannot be written: {e.strerror}.\nFix: end the command that runs it, by Ctrl-C or kill."
        ) from e


@contextmanager
def claimed(plan: Plan, *, is_sure: bool = False) -> Iterator[None]:
    """Keep other commands out of the plan's run directory; InUseError names the one that is in it.

    The lock decides where file systems have locks across machines. Where the beat of another machine is dead, and the
    launcher does not have the job any more, a lock that its file server never freed is passed over, after a look
    whether the beat comes again: not where the caller `is_sure`, having looked. Where the beat lives, or the launcher
    has the job, a lock that only holds on one machine is no right to begin.
    """
    run = RunDir(Path(plan.run_dir))
    lock = run.path.parent / f".{run.path.name}.lock"
    what = f"{run.path} is being written by"
    with ExitStack() as stack:
        try:
            # A sync process holds it for a moment while it ends the run of a killed supervisor.
            stack.enter_context(held_within(_MOMENT_S, lock, what))
        except InUseError:
            token = _dead_elsewhere(run, lock, is_sure=is_sure)
            if token is None:
                raise
            # One name for all that would follow this very attempt: the first of them has the lock.
            stack.enter_context(held(lock.with_name(f".{run.path.name}.after-{token}.lock"), what))
        status, owner, last = _seen_elsewhere(run)
        if owner is not None and last is not None and last.is_alive:
            raise InUseError(
                f"{what} {owner}, which gave a sign of life {max(0.0, last.seconds):.0f} s ago.\n"
                f"Fix: wait for it, or end it; where it was killed, begin again in {last.timeout_s:g} s."
            )
        if owner is not None and supervisor_alive(run, status):
            raise InUseError(
                f"{what} {owner}, or will be: its launcher still has the job.\n"
                f"Fix: wait for it, or end it: hpcexp cancel {run.path}"
            )
        yield


def _dead_elsewhere(run: RunDir, lock: Path, *, is_sure: bool) -> str | None:
    """The token of an attempt on another machine that has the lock and is certainly dead; None where there is none."""
    status, owner, last = _seen_elsewhere(run)
    if owner is None or last is None or supervisor_alive(run, status) is not False:
        return None
    if read_text(lock).strip() != str(owner):  # somebody else has it, who may be about to begin
        return None
    deadline = boottime() + (0.0 if is_sure else last.confirm_s)
    while boottime() < deadline:  # the clock of the file server may just have been set
        time.sleep(_POLL_S)
        again = silence(run.beat)
        if again is None or again.is_alive is not False:
            return None
    return str(read_facts(run.beat).get("token") or owner.token)


def _seen_elsewhere(run: RunDir) -> tuple[Status, Owner | None, Silence | None]:
    """The status, who has the directory by it where its process cannot be seen from here, and its silence."""
    try:
        status = read_status(run)
    except RunError:  # damaged: matters only to the command that resumes it
        return Status(), None, None
    owner = Owner.of(status)
    if status.state is not RunState.RUNNING or owner is None or owner.is_running() is not None:
        return status, None, None
    return status, owner, silence(run.beat)
