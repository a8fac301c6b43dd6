"""Which driver works on which job, by files alone: on any shared file system, with or without locks.

Each driver has a file in `drivers/` that it touches while it lives. A claim is a file in `claims/` with the driver's
token, made by link(2), which exactly one process can do. A claim whose driver is gone may be taken over.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.files.untrusted import UnusableFileError, read_text
from hpcexp.runs.beat import TIMEOUT_S, Beat
from hpcexp.runs.clock import boottime
from hpcexp.runs.owner import Owner, is_alive
from hpcexp.runs.records.files import read_or_none
from hpcexp.runs.records.sweep import DriverRecord

BEAT_S = 5.0
"""How often a driver looks whether its claims are still its own."""
STALE_S = TIMEOUT_S
"""A driver on another machine whose file is older than this is dead, unless its file says otherwise."""


@dataclass
class Claims:
    """The claims of one driver among those of others."""

    directory: Path
    """The sweep's directory."""
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    timeout_s: float = STALE_S
    """What this driver's file says."""
    _held: set[str] = field(default_factory=set)
    _beat: Beat | None = None
    _next_beat: float = 0.0

    def open(self) -> None:
        """Be there for others. OSError where the directory cannot be written."""
        self._claims.mkdir(parents=True, exist_ok=True)
        self._beat = Beat(self._driver(self.token), self.timeout_s)
        self._beat.start(Owner.this().facts())

    def close(self) -> None:
        """Let go of everything."""
        for name in list(self._held):
            self.release(name)
        if self._beat is not None:
            self._beat.stop()
        self._driver(self.token).unlink(missing_ok=True)

    def take(self, name: str) -> Owner | None:
        """Claim `name`; None where that succeeded, otherwise the driver that has it."""
        path = self._claims / name
        own = self._claims / f".{name}.{self.token}"
        own.write_text(self.token)
        try:
            while True:
                try:
                    os.link(own, path)
                except FileExistsError:
                    token = _read(path)
                    if token and (holder := self._living(token)) is not None:
                        return holder
                    if token is not None:
                        self._take_over(path, own, token)
                if _read(path) == self.token:
                    self._held.add(name)
                    return None
        finally:
            own.unlink(missing_ok=True)

    def release(self, name: str) -> None:
        """Let others have `name`."""
        self._held.discard(name)
        if _read(self._claims / name) == self.token:
            (self._claims / name).unlink(missing_ok=True)

    def holder(self, name: str) -> Owner | None:
        """Who has `name` and lives."""
        token = _read(self._claims / name)
        return self._living(token) if token else None

    def others(self) -> list[Owner]:
        """Other drivers that are at work on the sweep."""
        tokens = sorted(path.stem for path in (self.directory / "drivers").glob("*.json"))
        return [driver for token in tokens if token != self.token and (driver := self._living(token))]

    def beat(self) -> list[str]:
        """Claims that others took over since the last look, as this driver was suspended for too long."""
        if boottime() < self._next_beat:
            return []
        self._next_beat = boottime() + min(BEAT_S, self.timeout_s / 6)
        lost = [name for name in self._held if _read(self._claims / name) not in (self.token, None)]
        self._held.difference_update(lost)
        return lost

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold `name` for a moment, once whoever has it has let go."""
        while self.take(name) is not None:
            time.sleep(0.02)
        try:
            yield
        finally:
            self.release(name)

    @property
    def _claims(self) -> Path:
        return self.directory / "claims"

    def _driver(self, token: str) -> Path:
        return self.directory / "drivers" / f"{token}.json"

    def _living(self, token: str) -> Owner | None:
        """The driver of that token, unless it is dead; if that is unknown, it counts as alive."""
        path = self._driver(token)
        try:
            record = read_or_none(path, DriverRecord)
        except UnusableFileError:
            return None  # no driver writes a damaged file, so none that lives has one
        return None if record is None or is_alive(record, path) is False else Owner.of(record)

    def _take_over(self, path: Path, own: Path, gone: str) -> None:
        """Replace the claim of a driver that is `gone` by `own`, unless another driver has done so since."""
        # One name for the right to replace this very claim: whoever makes it, has it.
        right = path.with_name(f".{path.name}.after-{gone}")
        try:
            os.link(own, right)
        except FileExistsError:
            other = _read(right)
            if other not in (None, self.token) and self._living(other) is None:
                self._take_over(right, own, other)  # who had the right died with it
            if _read(right) != self.token:
                time.sleep(0.02)
                return
        if _read(path) == gone:
            with_token = path.with_name(f".{path.name}.{self.token}.new")
            os.link(own, with_token)
            os.replace(with_token, path)
        right.unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    """The token in a claim; None where there is no claim."""
    try:
        return read_text(path).strip()
    except FileNotFoundError:
        return None
