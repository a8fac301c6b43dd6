"""What a supervisor hears of its ranks: progress and errors down a pipe, and the first one's log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcexp.files.untrusted import open_regular
from hpcexp.launch.base.display import Display


class RankEvents:
    """Shows what the ranks say, and keeps what they fail of."""

    def __init__(
        self, fd: int, log: Path, shown: Display, reported: Callable[[int, float], None] | None = None
    ) -> None:
        self.errors: dict[int, dict[str, Any]] = {}
        """Rank → kind and message of what it failed of."""
        self.stopped: dict[int, int] = {}
        """Rank → the signal on which it has stopped as it should."""
        self.done: set[int] = set()
        """Ranks that have come to the end of the run."""
        self.pids: dict[int, int] = {}
        """Rank → its process, of those that are on this machine."""
        self.steps: dict[int, int] = {}
        """Rank → the newest optimizer step that it has told of."""
        self._heard_at = time.monotonic()
        self._fd, self._log, self._shown, self._reported = fd, log, shown, reported
        self._rest = b""
        self._is_open = True
        self._is_shown = True
        self._offset = log.stat().st_size if log.exists() else 0

    def silent_s(self) -> float:
        """Seconds since any rank has given a sign of life."""
        return time.monotonic() - self._heard_at

    @property
    def fd(self) -> int | None:
        """The file on which ranks may be heard; None once all have closed it."""
        return self._fd if self._is_open else None

    def listen(self) -> None:
        """Show what has come since."""
        for event in self._events():
            self._heard_at = time.monotonic()
            if event.get("rank") == 0 and "steps" in event:
                self._shown.progress(event)
            self._keep(event)
        for line in self._lines():
            self._shown.line(line)

    def _keep(self, event: dict[str, Any]) -> None:
        rank = event["rank"]
        match event:
            case {"error": error}:
                self.errors.setdefault(rank, error)
            case {"stopped": number}:
                self.stopped.setdefault(rank, number)
            case {"done": True}:
                self.done.add(rank)
            case {"pid": pid}:
                self.pids[rank] = pid
            case {"report": {"step": step, "value": value}} if self._reported is not None:
                self._reported(step, value)
                self._heard_at = time.monotonic()  # the answer may have taken its time
            case {"step": step}:
                self.steps[rank] = step

    def _events(self) -> list[dict[str, Any]]:
        while self._is_open:
            try:
                chunk = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            self._rest += chunk
            self._is_open = bool(chunk)
        *lines, self._rest = self._rest.split(b"\n")
        return [event for line in lines if (event := _parsed(line)) is not None]

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


def _parsed(line: bytes) -> dict[str, Any] | None:
    """An event; None where two ranks wrote at once and longer than a pipe keeps whole."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
