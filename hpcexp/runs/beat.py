"""Signs of life: a file that the owner of a directory touches, for those who cannot see its process.

A beat is as old as the file server says: its time is compared with that of a file touched just now beside it. So the
clocks of the machines that share a directory need not agree, and may be set at any time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import decode
from hpcexp.files.untrusted import open_regular, read_bytes

TIMEOUT_S = 60.0
"""An owner whose file is older than this is dead, unless the file says otherwise."""
_EVERY_S = 5.0
_BOUNDS_S = (1.0, 86400.0)
"""Within which a file may say otherwise."""
_MAX_BYTES = 65536
_PROBE = ".now."


class Beat:
    """Touches a file every few seconds, from a thread, while this process lives and is not stopped.

    From a thread, as the owner may be busy for minutes: hashing data, copying a checkpoint, sealing a directory.
    """

    def __init__(self, file: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.file, self.timeout_s = file, timeout_s
        self.every_s = min(_EVERY_S, timeout_s / 6)
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Write `facts` into the file and keep touching it. OSError if it cannot be written."""
        write_json(self.file, {**facts, "timeout_s": self.timeout_s})
        _drop_probes(self.file.parent)
        self._is_over.clear()
        self._thread = threading.Thread(target=self._go_on, name=f"beat {self.file}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop touching the file."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)  # a file server that is away may hold it for longer
            self._thread = None

    def _go_on(self) -> None:
        while not self._is_over.wait(self.every_s):
            with contextlib.suppress(OSError):  # needs no space on a full disk; other errors may pass
                _touch(self.file)


def _touch(file: Path) -> None:
    """Stamp a file with the file server's time."""
    fd = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.utime(fd)
        # Stamped again, as libfaketime has utime(2) write the time that it fakes. Not all file systems stamp this one.
        os.ftruncate(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Silence:
    """How long ago a beat was."""

    seconds: float
    timeout_s: float
    is_certain: bool
    """Whether measured by the file server's clock; else by this machine's, if nothing can be written there."""

    @property
    def confirm_s(self) -> float:
        """A little more than two beats."""
        return self.timeout_s / 2.5

    @property
    def is_alive(self) -> bool | None:
        """None if unknown.

        A time in the future is no sign of life either: a live owner touches its file again after a clock was set back.
        """
        if abs(self.seconds) <= self.timeout_s:
            return True
        return False if self.is_certain else None


def is_probe(path: Path) -> bool:
    """Whether this is the short-lived file that a reader of a beat makes beside it."""
    return path.name.startswith(_PROBE)


def read_facts(file: Path) -> dict[str, Any]:
    """What the owner of a beat has written; empty if there is none, or it is damaged."""
    try:
        return _parsed(read_bytes(file, _MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError, RunError):
        return {}


def silence(file: Path) -> Silence | None:
    """How long the owner of a beat has been silent; None if there is no beat."""
    try:
        with open_regular(file) as opened:  # opening makes NFS fetch the time; stat alone may answer from a cache
            facts, touched = opened.read(_MAX_BYTES), os.fstat(opened.fileno()).st_mtime
    except (OSError, RunError):
        return None
    now = _now(file.parent)
    return Silence((time.time() if now is None else now) - touched, _timeout_s(facts), now is not None)


def _now(directory: Path) -> float | None:
    """The time by the clock that stamps the files of a directory; None if it cannot be written."""
    probe = directory / f"{_PROBE}{os.getpid()}.{secrets.token_hex(4)}"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mtime
    except OSError:
        return None
    finally:
        os.close(fd)
        probe.unlink(missing_ok=True)


def _drop_probes(directory: Path) -> None:
    """Remove the probes of killed readers."""
    for probe in directory.glob(f"{_PROBE}*"):
        probe.unlink(missing_ok=True)


def _timeout_s(facts: bytes) -> float:
    """The time within which the owner promises to touch the file again."""
    least, most = _BOUNDS_S
    seconds = _parsed(facts).get("timeout_s")
    if not isinstance(seconds, int | float) or seconds != seconds:  # noqa: PLR0124 - NaN is not itself
        return TIMEOUT_S
    return float(min(max(seconds, least), most))


def _parsed(facts: bytes) -> dict[str, Any]:
    try:
        return decode(facts.decode(), dict[str, Any])
    except ValueError:
        return {}
