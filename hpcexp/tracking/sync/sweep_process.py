"""The process that syncs the runs of a sweep to MLflow, many at once and any number one after the other.

`python -m hpcexp.tracking.sync.sweep_process SWEEP_DIR` reads on its stdin which runs to follow, a JSON object a line:
`{"run": DIRECTORY, "axes": {KEY: VALUE}}`. A driver that leaves as it should says `{"end": true}`. Once its end of the
pipe is closed, what is there is synced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hpcexp.rundir import SweepDir
from hpcexp.runs.records.sync import Membership
from hpcexp.tracking.mlflow.credentials import Named
from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run import POLL_S, say, settle
from hpcexp.tracking.sync.sweep_lifecycle import SweepSync
from hpcexp.tracking.sync.sweep_members import Key, OpenRun, QueuedRun, key_of
from hpcexp.tracking.sync.unreachable_servers import UnreachableServers

_MAX_OPEN = 200
"""Runs that are followed at once, with two open files each; more wait until one of them is synced."""
_ENDING_S = 5.0
"""How long a driver that has closed the pipe without a word may take to be gone."""


class Inbox:
    """What the driver tells, and whether it still does."""

    def __init__(self, fd: int, sweep: SweepDir) -> None:
        self._fd = fd
        self._sweep = sweep
        self._rest = b""
        self.is_closed = False
        self.has_said_end = False
        """Whether the driver leaves as it should."""

    def read(self, timeout_s: float) -> list[QueuedRun]:
        """What has come, or comes within `timeout_s`."""
        if self.is_closed:
            time.sleep(timeout_s)
            return []
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return []
        chunk = os.read(self._fd, 1 << 16)
        self.is_closed = not chunk
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [entry for line in lines if (entry := self._entry(line)) is not None]

    def _entry(self, line: bytes) -> QueuedRun | None:
        try:
            message = json.loads(line)
            self.has_said_end |= bool(message.get("end"))
            if "run" not in message:
                return None
            return QueuedRun(Path(message["run"]), Membership(str(self._sweep.path), dict(message["axes"])))
        except (ValueError, TypeError, KeyError, AttributeError):
            say(f"not understood: {line[:200]!r}")
            return None


class SweepSyncProcess:
    """Follows what the driver tells, one step of one run after the other, until nothing more can be done."""

    def __init__(self, sweep: SweepDir, inbox: Inbox) -> None:
        self._inbox = inbox
        self._stores = Stores(Named(lambda: ()))
        self._servers = UnreachableServers()
        self._above = SweepSync(sweep, self._stores, self._servers)
        self._waiting: deque[QueuedRun] = deque()
        self._open: dict[Key, OpenRun] = {}
        self._wait_s = 0.0
        self._last_s = time.monotonic()
        """When something was synced last, or the driver left."""

    def run(self) -> int:
        """Exit status: 0 when everything was synced, 1 otherwise."""
        is_busy = True
        while True:
            was_closed = self._inbox.is_closed
            self._waiting.extend(self._inbox.read(0.0 if is_busy else POLL_S))
            if self._inbox.is_closed and not was_closed:
                self._once_more()
            is_busy = self._round()
            if was_closed and not is_busy and not self._goes_on():
                return self._leave()

    def _round(self) -> bool:
        """A step of every run, else the sweep's answer, else the pictures of a run; whether there was any of it."""
        if self._is_orphaned:
            self._above.end_if_abandoned()
        is_busy = self._above.begin()
        self._waiting.extend(self._above.astray())
        is_busy |= self._admit()
        for open_run in list(self._open.values()):
            is_busy |= self._take(open_run, self._send)
        is_busy = is_busy or self._above.finish()
        return is_busy or any(self._take(open_run, self._complete) for open_run in list(self._open.values()))

    def _once_more(self) -> None:
        """Try everything at once that was put off, as the driver has left."""
        self._last_s = time.monotonic()
        for entry in [*self._waiting, *(open_run.entry for open_run in self._open.values())]:
            entry.not_before = 0.0

    @property
    def _is_orphaned(self) -> bool:
        """Whether the driver is gone without a word."""
        return self._inbox.is_closed and not self._inbox.has_said_end

    def _goes_on(self) -> bool:
        """Whether there is something left to wait for, now that the driver has left."""
        if self._is_orphaned:
            is_ending = not self._above.is_over and time.monotonic() < self._last_s + _ENDING_S
            if is_ending or not all(open_run.is_over for open_run in self._open.values()):
                return True
        if any(entry.is_in_use for entry in self._waiting):
            return True  # another process syncs it, and ends by itself
        is_late = time.monotonic() > self._last_s + self._wait_s
        return not is_late and bool(self._unsynced(with_hopeless=False))

    def _leave(self) -> int:
        """Have what is not synced known to `hpcexp sync` with its reason; the exit status."""
        left = self._unsynced(with_hopeless=True)
        for open_run in self._open.values():
            error = self._servers.error(open_run.run_sync.uri) or TimeoutError("not in time")
            with open_run.inside(), contextlib.suppress(OSError):
                open_run.run_sync.failed(error)
            open_run.close()
        self._above.close()
        for name in left:
            say(f"not synced, left to `hpcexp sync`: {name}")
        return int(bool(left))

    def _unsynced(self, *, with_hopeless: bool) -> list[str]:
        """Names of what is not synced; without those that time would not help."""
        entries = [*self._waiting, *(open_run.entry for open_run in self._open.values())]
        is_left = not self._above.is_settled or (with_hopeless and self._above.is_refused)
        above = ["the sweep"] if is_left else []
        return above + [entry.path.name for entry in entries if with_hopeless or not entry.is_hopeless]

    def _admit(self) -> bool:
        """Open runs that wait; whether there was anything to do."""
        is_busy = False
        for _ in range(len(self._waiting)):
            entry = self._waiting.popleft()
            if len(self._open) < _MAX_OPEN and time.monotonic() >= entry.not_before:
                self._follow(entry)
                is_busy = True
            else:
                self._waiting.append(entry)
        return is_busy

    def _follow(self, entry: QueuedRun) -> None:
        """Open a run, unless there is nothing to be done for it."""
        try:
            known = self._open.get(key_of(entry.path))
            if known is None:
                self._opened(OpenRun(entry, self._stores))
            else:
                known.is_synced = False  # it may have gone on since
        except Exception as e:  # noqa: BLE001 - whatever its directory holds must not reach the others
            if entry.failures == 0:
                say(f"{entry.path}: {e}")
            entry.put_off(e)
            self._waiting.append(entry)

    def _opened(self, open_run: OpenRun) -> None:
        open_run.entry.went_well()
        run_sync = open_run.run_sync
        self._above.go_with(run_sync)
        with open_run.inside():
            if run_sync.is_complete:
                open_run.close()
                return
        self._wait_s = max(self._wait_s, float(run_sync.plan.settings.tracking.wait_s))
        self._open[open_run.key] = open_run

    def _take(self, open_run: OpenRun, turn: Callable[[OpenRun], bool]) -> bool:
        """Take a turn for a run, and put it off if that fails; whether there was anything to do."""
        began, entry, uri = time.monotonic(), open_run.entry, open_run.run_sync.uri
        with open_run.inside():
            try:
                is_busy = turn(open_run)
            except Exception as e:  # noqa: BLE001 - whatever hinders one run must not reach the others
                is_busy = True
                with contextlib.suppress(OSError):
                    open_run.run_sync.failed(e)
                self._servers.failed(uri, e, time.monotonic() - began)
                entry.put_off(e)
        if open_run.is_done or entry.is_hopeless:
            del self._open[open_run.key]
            open_run.close()
            self._waiting.extend([entry] if entry.is_hopeless else [])
        return is_busy

    def _send(self, open_run: OpenRun) -> bool:
        """Send the next of a run, if there is anything; whether there was."""
        if open_run.is_gone:
            say(f"{open_run.entry.path} was removed")
            open_run.is_done = True
            return True
        if open_run.is_synced:
            return False
        run_sync = open_run.run_sync
        has_news = open_run.look(is_orphan=self._is_orphaned)
        if not has_news or self._servers.is_resting(run_sync.uri) or not self._above.has_place_for(run_sync):
            return False
        open_run.send(among=len(self._open))
        self._went_well(open_run)
        return True

    def _complete(self, open_run: OpenRun) -> bool:
        """Complete a run that lacks but pictures, or draw those of one that has to wait; whether it was such a one."""
        has_to_wait = self._servers.is_resting(open_run.run_sync.uri) or not open_run.is_due
        if has_to_wait or not open_run.is_synced:
            return open_run.draw()
        open_run.complete()
        self._went_well(open_run)
        return True

    def _went_well(self, open_run: OpenRun) -> None:
        self._servers.answered(open_run.run_sync.uri)
        open_run.entry.went_well()
        self._last_s = time.monotonic()


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: synced; 1: not everything."""
    parser = argparse.ArgumentParser(
        prog="python -m hpcexp.tracking.sync.sweep_process", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("sweep_dir", type=Path)
    sweep = SweepDir(parser.parse_args(argv).sweep_dir.absolute())
    settle(sweep)
    return SweepSyncProcess(sweep, Inbox(0, sweep)).run()


if __name__ == "__main__":
    sys.exit(main())
