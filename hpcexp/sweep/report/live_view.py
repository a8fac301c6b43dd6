"""What a person sees of a sweep at work: a table that is redrawn on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from hpcexp.launch.base.display import Display
from hpcexp.launch.base.outcome import Outcome
from hpcexp.rank_protocol import Progress
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.store.jobs import Job
from hpcexp.text.formatting import in_line, shown
from hpcexp.text.terminal import beneath, guard, pass_on

SHOWN = 20
"""Running jobs in the table; of more, their number is said."""
_COLUMNS = {"job": 4, "run": 12, "progress": 9, "loss": 8, "metric": 6, "steps/s": 7, "left": 8}
"""Column → its least width. The metric has what it needs, the run's name what is left of the terminal."""


@dataclass
class JobProgress:
    """Keeps what a job has last said of its progress. A Display that shows nothing itself."""

    job: Job
    owner: SweepLines
    began: float = field(default_factory=time.monotonic)
    event: Progress | None = None
    _first: tuple[float, int] | None = None

    def progress(self, event: Progress) -> None:
        """Keep the newest."""
        self.event = event
        if self._first is None:
            self._first = (time.monotonic(), event.step)

    def line(self, text: str) -> None:
        """What the job prints, with its number before it."""
        self.owner.pass_on(self.job, text)

    def close(self) -> None:
        """Nothing is open."""

    def speed(self) -> float | None:
        """Steps per second since the first report."""
        if self._first is None or self.event is None:
            return None
        since, step = self._first
        seconds = time.monotonic() - since
        return (self.event.step - step) / seconds if seconds > 0 and self.event.step > step else None

    def seconds_left(self) -> float | None:
        if (speed := self.speed()) is None or self.event is None or self.event.steps is None:
            return None
        return (self.event.steps - self.event.step) / speed


class SweepLines:
    """A line for each job that begins or ends."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        """Jobs in all; None if unknown."""
        self.counts: dict[str, int] = {}
        self.running: dict[int, JobProgress] = {}
        self._why = ""

    def began(self, job: Job) -> None:
        """Say which."""
        if job.entry.job not in self.running:
            self.display(job)
        self.say(job, f"{job.plan.experiment}/{job.plan.name}")

    def display(self, job: Job) -> Display:
        """Keeps the job's progress for the table."""
        progress = self.running[job.entry.job] = JobProgress(job, self)
        return progress

    def ended(self, job: Job, outcome: Outcome, value: str, *, is_old: bool) -> None:
        """Say how, but for what was done before."""
        progress = self.running.pop(job.entry.job, None)
        self.counts[outcome.state] = self.counts.get(outcome.state, 0) + 1
        if is_old:
            return
        took = f"  {time.monotonic() - progress.began:.1f} s" if progress else ""
        result = value or outcome.cause.partition("\n")[0]
        self.say(job, f"{outcome.state}{took}  {result}".rstrip())

    def say(self, job: Job | None, text: str) -> None:
        """One or more lines, with the job's number before each."""
        self.pass_on(job, shown(text))

    def pass_on(self, job: Job | None, text: str) -> None:
        """`say` what the job's own code has printed, as it is."""
        of = f"/{self.total}" if self.total and job and job.entry.job <= self.total else ""
        head = f"[{job.entry.job}{of}] " if job else ""
        self._print("\n".join(f"{head}{line}" for line in text.splitlines()))

    def refresh(self, waiting: int, why: str) -> None:
        """Say once what the next job waits for."""
        if why and why != self._why:
            self.say(None, f"{waiting} jobs wait: {why}")
        self._why = why

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, text: str) -> None:
        pass_on(text)


class Table(SweepLines):
    """Running jobs with metric, speed and time left, and how many wait and have ended, below what has been printed."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(total)
        self._waiting = 0
        self._console = Console(file=beneath(sys.stdout), markup=False, emoji=False, highlight=False)
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4, transient=True)
        self._live.start()
        guard()  # what is printed meanwhile goes to the console, which obeys what it finds in a text

    def began(self, job: Job) -> None:
        """The table shows it."""
        if job.entry.job not in self.running:
            self.display(job)

    def refresh(self, waiting: int, why: str) -> None:
        """Keep what the table shows."""
        self._waiting, self._why = waiting, why

    def close(self) -> None:
        """Take the table away."""
        self._live.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _table(self) -> Any:
        from rich.table import Table as RichTable

        running = sorted(self.running.items())[:SHOWN]
        rows = [(str(number), progress.job.plan.name, *_cells(progress)) for number, progress in running]
        table = RichTable(
            box=None, pad_edge=False, title=in_line(self._title()), title_justify="left", title_style="bold"
        )
        for name, width in zip(_COLUMNS, _widths(rows, self._console.width), strict=True):
            table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
        for row in rows:
            table.add_row(*map(in_line, row))
        if len(self.running) > SHOWN:
            table.add_row("", f"and {len(self.running) - SHOWN} more")
        return table

    def _title(self) -> str:
        ended = [f"{number} {state}" for state, number in self.counts.items()]
        parts = [*ended, f"{len(self.running)} running", f"{self._waiting} waiting"]
        why = f" ({self._why.partition(chr(10))[0]})" if self._why else ""
        return " · ".join(parts) + why


def view_for(kind: str, total: int | None) -> SweepLines:
    """By `launch.progress`: `auto`, `bar` (a table), `lines` or `none`."""
    if kind == "bar" or (kind == "auto" and sys.stdout.isatty()):
        return Table(total)
    return Quiet(total) if kind == "none" else SweepLines(total)


class Quiet(SweepLines):
    """Only what jobs print, and those that fail."""

    def began(self, job: Job) -> None:
        """Nothing."""

    def ended(self, job: Job, outcome: Outcome, value: str, *, is_old: bool) -> None:
        """Failures."""
        super().ended(job, outcome, value, is_old=is_old or outcome.state is not RunState.FAILED)


def _cells(progress: JobProgress) -> tuple[str, ...]:
    event = progress.event
    if event is None:
        return ("starting",)
    speed, left = progress.speed(), progress.seconds_left()
    done = f"{100 * event.step / event.steps:.0f} %" if event.steps else f"step {event.step}"
    return (
        done,
        f"{event.loss:.4g}" if event.loss is not None else "",
        _monitored(progress),
        f"{speed:.0f}" if speed else "",
        time.strftime("%H:%M:%S", time.gmtime(left)) if left is not None else "",
    )


def _monitored(progress: JobProgress) -> str:
    """`val/acc 0.981`: the monitored metric."""
    name = progress.job.plan.settings.trainer.monitor
    value = progress.event.metrics.get(name) if progress.event else None
    return f"{name} {value:.4g}" if value is not None else ""


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Of the columns, in a terminal of that width: numbers are shown whole, names as far as there is room."""
    needed = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")] or [0] * len(_COLUMNS)
    needed += [0] * (len(_COLUMNS) - len(needed))
    widths = dict(zip(_COLUMNS, needed, strict=True))
    widths = {name: max(least, len(name), widths[name]) for name, least in _COLUMNS.items()}
    room = width - sum(w + 2 for name, w in widths.items() if name != "run")
    return list((widths | {"run": max(_COLUMNS["run"], min(room, widths["run"]))}).values())
