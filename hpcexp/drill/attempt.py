"""One attempt at a training, watched from outside and stopped at a step."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress

from hpcexp.drill.kills import KillMode
from hpcexp.drill.processes import freeze, ranks_of, thaw
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_note
from hpcexp.runs.journal import read_points
from hpcexp.runs.records.status import read_status

_POLL_S = 0.001
_NEAR = 40
"""Steps before the aim from which on the ranks go only for moments, so that a fast training does not run past it."""


class Attempt:
    """A supervisor and its ranks. The ranks are None but for those of world size many that were found."""

    def __init__(self, plan: Plan, run: RunDir, supervisor: subprocess.Popen[bytes], earlier: Collection[int]) -> None:
        self.supervisor = supervisor
        self.ranks: dict[int, int] = {}
        """Rank → pid, once all are there."""
        self._plan, self._run, self._earlier = plan, run, earlier
        self._offset = self._step = 0

    def reach(self, aim: int, patience_s: float) -> int | None:
        """Freeze the ranks at step `aim` or soon after it; the step. None where it ended before.

        TimeoutError where it does not get on for `patience_s`.
        """
        deadline, seen = time.monotonic() + patience_s, -1
        while self.supervisor.poll() is None:
            if not self.ranks:
                self._find()
            elif (step := self._looked(aim)) >= aim:
                return step
            elif step > seen:
                seen, deadline = step, time.monotonic() + patience_s
            if time.monotonic() > deadline:
                raise TimeoutError(f"does not get on: at step {self._step} for {patience_s:.0f} s")
            time.sleep(_POLL_S)
        return None

    def kill(self, mode: KillMode) -> None:
        """Kill part of the frozen attempt, and let the rest continue."""
        with suppress(ProcessLookupError):
            os.kill(self.supervisor.pid if mode.rank is None else self.ranks[mode.rank], mode.signal)
        thaw(self.ranks.values())

    def _looked(self, aim: int) -> int:
        """The step, looked at closely where it is near the aim; the ranks are frozen if it is reached."""
        pids = self.ranks.values()
        if self._step < aim - _NEAR and self.step() < aim - _NEAR:
            return self._step
        freeze(pids)
        if self.step() < aim:
            thaw(pids)
        return self._step

    def step(self) -> int:
        """The last step in the journal or in a checkpoint, of this attempt or an earlier one."""
        points, self._offset = read_points(self._run.journal, self._offset)
        note = read_note(self._run.last)
        self._step = max([self._step, (note and note.step) or 0, *(point.step for point in points)])
        return self._step

    def _find(self) -> None:
        if read_status(self._run).pid != self.supervisor.pid:
            return
        found = ranks_of(self._run, self._plan.topology.world_size, self._earlier)
        if len(found) == self._plan.topology.world_size:
            self.ranks = found
