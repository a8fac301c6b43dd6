"""The events of a job's ranks as its supervisor keeps and shows them, and the first rank's log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hpcexp.files.untrusted import open_regular
from hpcexp.launch.base.display import Display
from hpcexp.rank_protocol import Done, Event, Failed, Progress, Report, Started, Stopped, event_reader


class RankEvents:
    """Shows what the ranks say, and keeps what they fail of."""

    def __init__(
        self, fd: int, log: Path, shown: Display, reported: Callable[[int, float], None] | None = None
    ) -> None:
        self.errors: dict[int, Failed] = {}
        """Rank → the error that ended it."""
        self.stopped: dict[int, int] = {}
        """Rank → the signal on which it has stopped as it should."""
        self.done: set[int] = set()
        """Ranks that have completed the run."""
        self.pids: dict[int, int] = {}
        """Rank → its process, of those that are on this machine."""
        self.steps: dict[int, int] = {}
        """Rank → the newest optimizer step that it has reported."""
        self._heard_at = time.monotonic()
        self._reader, self._log, self._shown, self._reported = event_reader(fd), log, shown, reported
        self._is_shown = True
        self._offset = log.stat().st_size if log.exists() else 0

    def silent_s(self) -> float:
        """Seconds since any rank has given a sign of life."""
        return time.monotonic() - self._heard_at

    @property
    def fd(self) -> int | None:
        """The file on which ranks may be heard; None once all have closed it."""
        return self._reader.fd if self._reader.is_open else None

    def listen(self) -> None:
        """Show what has come since."""
        for event in self._events():
            self._heard_at = time.monotonic()
            self._keep(event)
        for line in self._lines():
            self._shown.line(line)

    def _keep(self, event: Event) -> None:
        match event:
            case Failed(rank=rank):
                self.errors.setdefault(rank, event)
            case Stopped(rank=rank, signal=number):
                self.stopped.setdefault(rank, number)
            case Done(rank=rank):
                self.done.add(rank)
            case Started(rank=rank, pid=pid):
                self.pids[rank] = pid
            case Report(epoch=epoch, value=value) if self._reported is not None:
                self._reported(epoch, math.nan if value is None else value)
                self._heard_at = time.monotonic()  # the verdict may have taken its time
            case Progress(rank=rank, step=step, phase=phase):
                self.steps[rank] = step
                if phase is not None:
                    self._shown.progress(event)

    def _events(self) -> Iterator[Event]:
        with suppress(BlockingIOError):
            while self._reader.is_open:
                yield from self._reader.read()

    def _lines(self) -> list[str]:
        """Whole new lines of the log. Not those that a failing rank writes last: the outcome tells what it says."""
        if self.errors or not self._is_shown or not self._log.exists():
            return []
        with open_regular(self._log) as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        shown, crash, _ = data[:end].partition(b"Fatal Python error: ")
        self._is_shown = not crash
        return shown.decode(errors="replace").splitlines()
