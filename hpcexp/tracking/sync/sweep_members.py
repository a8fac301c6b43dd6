"""A run that the sync process of a sweep holds open, or has queued."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcexp.errors import InUseError
from hpcexp.rundir import RunDir
from hpcexp.runs.records.sync import Membership
from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run import POLL_S, SHARE, RunSync, alone
from hpcexp.tracking.sync.unreachable_servers import backoff, is_down

_FIRST_S = 2.0
"""How long a run is left alone at first: one that is over by then is sent in one go, for half of the work."""


Key = tuple[int, int]
"""The same for the same directory only."""


def key_of(directory: Path | int) -> Key:
    """Of a path, or of an open directory."""
    found = os.stat(directory)  # noqa: PTH116 - also of a number
    return found.st_dev, found.st_ino


@dataclass
class QueuedRun:
    """A run that is waiting to be synced."""

    path: Path
    sweep: Membership
    failures: int = 0
    not_before: float = 0.0
    """When to try again, by the monotonic clock."""
    is_in_use: bool = False
    """Whether it waits for another process, which syncs it."""
    is_hopeless: bool = False
    """Whether it waits neither for a server nor for another process."""

    def put_off(self, error: Exception) -> None:
        """Try it again later."""
        self.failures += 1
        self.not_before = time.monotonic() + backoff(self.failures)
        self.is_in_use = isinstance(error, InUseError)
        self.is_hopeless = not is_down(error) and not self.is_in_use

    def went_well(self) -> None:
        """Forget that it ever failed."""
        self.failures, self.is_in_use, self.is_hopeless = 0, False, False


class OpenRun:
    """A run whose directory this process holds open, and syncs alone.

    The directory itself, as launch may give its path to a new try while this one is still synced. What is to be
    done for it is done `inside`.
    """

    def __init__(self, entry: QueuedRun, stores: Stores) -> None:
        """InUseError where another process syncs it, RunError or OSError where there is no run that can be read."""
        self.entry = entry
        self.is_over = False
        """Whether the run had ended when it was looked at last."""
        self.is_synced = False
        """Whether only its pictures are missing."""
        self.is_done = False
        """Whether nothing is missing."""
        self._next_s = time.monotonic() + _FIRST_S
        with ExitStack() as stack:
            self._fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, self._fd)
            with self.inside():
                stack.enter_context(alone(RunDir(Path()), 0.0))
                self.run_sync = RunSync(RunDir(Path()), stores, entry.sweep)
            self._held = stack.pop_all()

    @property
    def key(self) -> Key:
        """Of its directory, whatever that is called."""
        return key_of(self._fd)

    @property
    def is_gone(self) -> bool:
        """Whether the directory was removed."""
        return os.fstat(self._fd).st_nlink == 0

    @property
    def is_due(self) -> bool:
        """Whether it need not wait, having failed."""
        return time.monotonic() >= self.entry.not_before

    @contextmanager
    def inside(self) -> Iterator[None]:
        """With the directory as working directory."""
        os.fchdir(self._fd)
        try:
            yield
        finally:
            os.chdir("/")

    def look(self, *, is_orphan: bool) -> bool:
        """Whether there is something to be sent now. `is_orphan`: who started it is gone."""
        self.is_over = self.run_sync.has_ended(is_orphan=is_orphan)
        return self.is_due and (self.is_over or time.monotonic() >= self._next_s)

    def send(self, among: int) -> None:
        """Send the next metrics, or the rest. `among`: how many runs are to get along with the time there is."""
        if self.is_over and not self.run_sync.is_behind:
            self.run_sync.send_rest()
            self.is_synced = True
        else:
            self._next_s = time.monotonic() + max(POLL_S, SHARE * among * self.run_sync.send())

    def complete(self) -> None:
        """Send all that is missing."""
        self.run_sync.complete()
        self.is_done = True

    def draw(self) -> bool:
        """Have the pictures of a run that has ended, to be sent later; whether they were not there."""
        is_undrawn = self.run_sync.is_undrawn
        self.run_sync.draw()
        return is_undrawn

    def close(self) -> None:
        """Let others sync it."""
        self._held.close()
