"""Watching a job's ranks to their end: signals, the first failure, a hang; and the job's outcome."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hpcexp.launch.base.outcome import Outcome, stopped_by
from hpcexp.launch.base.polling import Supervision
from hpcexp.launch.supervisor.oom import oom_kills
from hpcexp.launch.supervisor.rank_events import RankEvents
from hpcexp.launch.supervisor.stack_dumps import stacks
from hpcexp.launch.supervisor.system_metrics import SystemMetrics
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState

START_S = 600.0
"""The least time that a rank has to import, read its data and finish its first step."""
CRASHES = tuple(getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS"))
"""Signals that a process causes itself; others come from outside."""
_KILLED_WORKER = re.compile(r"DataLoader worker \(pid \d+\) is killed by signal: Killed")
"""torch's message when SIGKILL ends a worker of a rank."""
MISTAKES = ("config", "data")
"""Kinds of errors in a rank that the user can fix in the configuration."""


class Group(Protocol):
    """The processes of a job on this machine."""

    events_fd: int

    def failures(self) -> dict[int, int]:
        """Rank → exit status of those that ended badly; negative ones are signals."""

    def left(self) -> list[int]:
        """Ranks that ended with status 0."""

    def trouble(self) -> str | None:
        """Why they were ended or never started, if no rank could report it."""

    def are_done(self) -> bool:
        """Whether all have ended."""

    def signal(self, number: int) -> None:
        """Signal all that still run."""

    def close(self) -> None:
        """End whatever still runs."""


@dataclass
class Watch:
    """One job's ranks, and how long to wait for them."""

    ranks: Group
    events: RankEvents
    run: RunDir
    grace_s: float
    hang_s: float | None
    stop: Sequence[int]
    """Signals that ask the job to end; grows as they arrive. At the second one ranks are killed."""
    system_metrics: SystemMetrics
    elsewhere: Callable[[], str | None] = lambda: None
    """What ended the job on another machine."""
    check: Callable[[], None] = lambda: None
    """Raises TakenOverError if another command has taken the run over."""

    def until_end(self) -> Supervision[Outcome]:
        """Watch until all ranks have ended."""
        oom_before = oom_kills()
        trouble, failures = yield from self._until_end()
        if trouble:
            return Outcome(RunState.FAILED, trouble, 1)
        if not failures and self.run.summary.exists():
            return _complete(self.run)
        if number := self.stop[0] if self.stop else self._stopped_by(failures):
            return stopped_by(number)
        if not failures:
            cause = "its ranks ended before the run was complete: something called exit."
            return Outcome(RunState.FAILED, f"{cause}\nIts log: {self.run.rank_log(0)}", 1)
        return self._failed(failures, oom_kills() > oom_before)

    def _until_end(self) -> Supervision[tuple[str | None, dict[int, int]]]:
        """Trouble that ranks cannot report themselves; and the first failures, with their exit codes."""
        deadline: float | None = None
        is_killing = False
        failures: dict[int, int] = {}
        while not self.ranks.are_done():
            yield self.events.fd
            self.check()  # before anything is written: this process may have been suspended for long
            self.events.listen()
            self.system_metrics.look(self.events.pids.values())
            failures = failures if is_killing else self._failures(failures)
            is_ending = bool(self.stop or failures or self.events.stopped)
            if not is_ending and (trouble := self._hang() or self.elsewhere()):
                return trouble, {}
            if deadline is None and (self.stop or failures):
                self.ranks.signal(signal.SIGTERM)
                deadline = time.monotonic() + self.grace_s
            elif deadline is not None and (time.monotonic() > deadline or len(self.stop) > 1):
                is_killing = True
                self.ranks.signal(signal.SIGKILL)
        self.events.listen()
        trouble = None if self.stop or self.events.stopped else self.elsewhere() or self.ranks.trouble()
        return trouble, failures or self.ranks.failures()

    def _failures(self, before: dict[int, int]) -> dict[int, int]:
        """The first failures, and killed ranks: one that lost its connection to a killed rank may be seen before it."""
        now = self.ranks.failures()
        return before | {rank: code for rank, code in now.items() if not before or code == -signal.SIGKILL}

    def _hang(self) -> str | None:
        """Where each rank is, if none has made progress for `launch.hang_s`."""
        if self.hang_s is None:
            return None
        patience_s = self.hang_s if self.events.steps else max(self.hang_s, START_S)
        if self.events.silent_s() < patience_s:
            return None
        where = stacks(self.events.pids, self.run)
        where_text = "\n".join(f"rank {rank}{self._step(rank)}: {place}" for rank, place in where.items())
        return (
            f"no rank has got any further for {patience_s:g} s (launch.hang_s).\n{where_text}\n"
            f"All threads of every rank: {self.run.rank_log(0).parent}\n"
            "Fix: mend what it hangs in; for steps or data that take longer, launch.hang_s=…, or null for ever."
        )

    def _step(self, rank: int) -> str:
        return f" after step {self.events.steps[rank]}" if rank in self.events.steps else ""

    def _stopped_by(self, failures: dict[int, int]) -> int | None:
        """The signal that somebody else sent to a rank, if it stopped cleanly."""
        is_orderly = not self.events.errors and set(failures) <= set(self.events.stopped)
        return next(iter(self.events.stopped.values()), None) if is_orderly else None

    def _failed(self, failures: dict[int, int], is_short_of_memory: bool) -> Outcome:
        """In the words of the rank that failed first.

        A rank that reported nothing died by itself, and the others report a lost connection. Otherwise the first report
        counts.
        """
        if left := [rank for rank in self.ranks.left() if rank not in self.events.done]:
            rank = left[0]
            cause = f"rank {rank} left with status 0 before the run was complete: something in it called exit."
            return Outcome(RunState.FAILED, f"{cause}\nIts log: {self.run.rank_log(rank)}", 1)
        errors = self.events.errors
        silent = [rank for rank in failures if rank not in errors]
        silent.sort(key=lambda rank: not from_outside(failures[rank]))  # others may have aborted for it
        rank = next(iter(silent or errors))
        code = failures.get(rank) or self.ranks.failures().get(rank) or 1
        said = errors.get(rank)
        if said and said.kind in MISTAKES:
            return Outcome(RunState.FAILED, said.message, 2)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        what = f": {said.message}" if said else ""
        number = from_outside(code) or (signal.SIGKILL if _KILLED_WORKER.search(what) else 0)
        if number == signal.SIGKILL and is_short_of_memory:
            what += (
                ": this machine ran out of memory, or what the job may take of it (the kernel has killed a process for "
                "it).\n"
                "Fix: data.global_batch_size, data.num_workers, a smaller model, or fewer jobs at once"
            )
        return Outcome(RunState.FAILED, f"rank {rank} {how}{what}\nIts log: {self.run.rank_log(rank)}", 1, number)


def from_outside(code: int) -> int:
    """The signal by which something else ended a process with this exit code; 0 if it ended or crashed by itself."""
    return -code if code < 0 and -code not in CRASHES else 0


def _complete(run: RunDir) -> Outcome:
    """The outcome of a complete run, from its summary."""
    epoch = read_summary(run).pruned
    return (
        Outcome(RunState.FINISHED, "", 0) if epoch is None else Outcome(RunState.PRUNED, f"pruned at epoch {epoch}", 0)
    )
