"""The state of a sweep in its directory, which several drivers may write one after the other."""

from __future__ import annotations

import sys

from msgspec.structs import replace

from hpcexp.files.untrusted import UnusableFileError
from hpcexp.rundir import SweepDir
from hpcexp.runs.clock import ended_now, started_now
from hpcexp.runs.owner import Owner
from hpcexp.runs.records.files import write
from hpcexp.runs.records.status import RunState, Status, read_status


class SweepState:
    """Written when a driver starts, and by the last driver when it ends."""

    def __init__(self, directory: SweepDir) -> None:
        self._directory = directory
        self._before = self._read(Status())
        now = started_now()
        self._status = Status(
            state=RunState.RUNNING,
            begun=self._before.begun or now["started"],
            ended=self._before.ended,
            cause=self._before.cause,
            **now,
            **Owner.this().facts(),
        )
        write(directory.status, self._status)

    def end(self, state: RunState, cause: str, *, is_idle: bool) -> None:
        """`is_idle`: this driver ran nothing, so that a final state stays as it was."""
        if is_idle and self._before.state.is_final:
            write(self._directory.status, self._before)
            return
        status = self._read(self._status)
        # Otherwise the status is of a driver that came later and ended earlier.
        is_own = status.token == self._status.token
        ended = ended_now(status.started_boot_s if is_own else None)
        write(self._directory.status, replace(status, state=state, cause=cause, **ended))

    def _read(self, otherwise: Status) -> Status:
        """The sweep's status; `otherwise` if its file is damaged, as this driver replaces it."""
        try:
            return read_status(self._directory)
        except UnusableFileError as e:
            print(f"{str(e).partition(chr(10))[0]} It is written anew.", file=sys.stderr, flush=True)
            return otherwise
