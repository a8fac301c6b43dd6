"""The sweep's own MLflow run while its jobs are synced: there before they are, and ended with the sweep."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from errno import ENOENT

from hpcexp.errors import InUseError
from hpcexp.files.untrusted import UnusableFileError
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.status import read_status
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.status.state import is_driven
from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run import RunSync, alone, end_if_abandoned, say
from hpcexp.tracking.sync.sweep_members import QueuedRun
from hpcexp.tracking.sync.sweep_upload import SweepUpload, members
from hpcexp.tracking.sync.unreachable_servers import UnreachableServers, backoff, is_down

_PATIENCE_S = 30.0
"""How long runs wait while another process makes the MLflow run that they belong below."""


class SweepSync:
    """Takes care of the sweep's MLflow run, unless another process of the same sweep does."""

    def __init__(self, sweep: SweepDir, stores: Stores, servers: UnreachableServers) -> None:
        self._sweep, self._stores, self._servers = sweep, stores, servers
        self._like: RunSync | None = None
        """A run of the sweep: it goes where that goes."""
        self._parent: SweepUpload | None = None
        """None while another process takes care of it."""
        self._held = ExitStack()
        self._since = time.monotonic()
        self._failures = 0
        self._not_before = 0.0
        self.is_hopeless = False
        """Whether it could not be sent for a reason that time does not mend."""

    def go_with(self, run_sync: RunSync) -> None:
        """Go where the first tracked run of the sweep goes."""
        if self._like is None and run_sync.uri is not None:
            self._like = run_sync

    def has_place_for(self, run_sync: RunSync) -> bool:
        """Whether a run need not wait for the MLflow run that it belongs below."""
        if self._like is None or run_sync.uri != self._like.uri or self.is_hopeless:
            return True
        if self._parent is not None:
            return self._parent.is_started or self._parent.is_complete
        with contextlib.suppress(UnusableFileError):
            return bool(read_sync_record(self._sweep).run_id) or time.monotonic() > self._since + _PATIENCE_S
        return True  # its runs are synced without it

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do for it now."""
        if self._like is None or self._parent is None:
            return True
        return self.is_hopeless or self._parent.is_complete or not self.is_over

    @property
    def is_refused(self) -> bool:
        """Whether the sweep is there and MLflow does not have it, for a reason that time does not mend."""
        return self.is_hopeless and self._sweep.path.is_dir()

    @property
    def is_over(self) -> bool:
        """Whether the sweep has ended; not where its status is damaged, which `finish` would report."""
        try:
            return read_status(self._sweep).state.is_final
        except UnusableFileError:
            return False

    def end_if_abandoned(self) -> None:
        """Mark a sweep as killed that no driver works on and none has ended."""
        if self._sweep.status.exists() and not is_driven(self._sweep):
            with contextlib.suppress(UnusableFileError):
                end_if_abandoned(self._sweep, "sweep", is_orphan=True)

    def begin(self) -> bool:
        """Have the MLflow run, new or resumed; whether there was anything to do for that."""
        if not self._is_due or not self._is_ours() or self._parent is None:
            return False
        return not (self._parent.is_started or self._parent.is_complete) and self._try(self._parent.start)

    def finish(self) -> bool:
        """Send the answer of a sweep that is over; whether there was anything to do for that."""
        if not self._is_due or not self._is_ours() or self._parent is None:
            return False
        return self.is_over and not self._parent.is_complete and self._try(self._parent.finish)

    def astray(self) -> list[QueuedRun]:
        """Runs of the sweep that MLflow shows below one that is there no more."""
        if self._parent is None or not self._parent.was_remade:
            return []
        self._parent.was_remade = False
        return [QueuedRun(run.path, place) for run, place in members(self._sweep) if run.mlflow.exists()]

    def close(self) -> None:
        """Let others take care of it."""
        self._held.close()

    @property
    def _uri(self) -> str | None:
        return None if self._like is None else self._like.uri

    def _try(self, step: Callable[[], object]) -> bool:
        began = time.monotonic()
        try:
            step()
        except Exception as e:  # noqa: BLE001 - whatever a server does must not reach the runs
            self._failed(e, time.monotonic() - began)
        else:
            self._failures, self.is_hopeless = 0, False
            self._servers.answered(self._uri)
        return True

    @property
    def _is_due(self) -> bool:
        is_early = time.monotonic() < self._not_before or self._servers.is_resting(self._uri)
        return self._like is not None and not is_early

    def _is_ours(self) -> bool:
        """Have the care of it, where no other process has; whether that is so."""
        if self._parent is not None or self._like is None or self._like.uri is None:
            return self._parent is not None
        try:
            if not self._sweep.path.is_dir():
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self._sweep.path))
            with ExitStack() as stack:
                stack.enter_context(alone(self._sweep, 0.0))
                parent = SweepUpload(self._sweep, self._stores)
                parent.go_with(self._like.plan, self._like.uri)
                self._held = stack.pop_all()
        except InUseError:
            return False
        except (OSError, UnusableFileError) as e:
            self._failed(e, 0.0)
            return False
        self._parent = parent
        return True

    def _failed(self, error: Exception, spent_s: float) -> None:
        problem = str(error)
        if self._parent is not None:
            with contextlib.suppress(OSError):
                problem = self._parent.failed(error)
        say(f"sweep {self._sweep.path.name}: {problem}")
        self._failures += 1
        self._not_before = time.monotonic() + backoff(self._failures)
        self.is_hopeless = not is_down(error)
        self._servers.failed(self._uri, error, spent_s)
