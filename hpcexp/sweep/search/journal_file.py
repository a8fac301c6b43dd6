"""Optuna's journal of a study: a file that several processes append to, on whatever file system."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

GRACE_S = 30.0
"""A lock that has not changed for this long belongs to a dead process."""
_LONGEST_PAUSE_S = 0.2

_Stamp = tuple[int, int]


class LineJournal(JournalFileBackend):
    """Optuna's journal, in which a line that a full disk has left torn does not spoil the lines after it."""

    def __init__(self, path: Path) -> None:
        self._path, self._own_lock = path, JournalLock(path)
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, after what is whole."""
        with locked(self._own_lock):
            _drop_torn_line(self._path)
        super().append_logs(logs)


class JournalLock(BaseJournalFileLock):
    """A file made with O_EXCL, which is atomic on NFS from version 3 on.

    Where its holder died, one process may remove it. With Optuna's own locks two that have waited for as long can both
    do so, and the second removes the lock that the first has made since.
    """

    def __init__(self, path: Path, grace_s: float | None = None) -> None:
        self._file = path.with_name(f"{path.name}.lock")
        self._grace_s = GRACE_S if grace_s is None else grace_s
        self._own: int | None = None
        """Inode of the lock that this process has made."""

    def acquire(self) -> bool:
        """Return once nobody else has it."""
        seen: _Stamp | None = None
        since, pause_s = 0.0, 0.001
        while True:
            try:
                handle = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                pass
            else:
                self._own = os.fstat(handle).st_ino
                os.close(handle)
                return True
            now = _stamp(self._file)
            if now != seen:
                seen, since = now, time.monotonic()
            elif now is not None and time.monotonic() - since > self._grace_s:
                self._remove(now)
                since = time.monotonic()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def release(self) -> None:
        """Let others have it, unless they took this process for dead meanwhile."""
        stamp = _stamp(self._file)
        if stamp is not None and stamp[0] == self._own:
            self._file.unlink(missing_ok=True)

    def _remove(self, dead: _Stamp) -> None:
        """Remove the lock of a dead process: the right to do so is a second name of this very file, made by one."""
        right = self._file.with_name(f"{self._file.name}.after-{dead[0]}-{dead[1]}")
        try:
            os.link(self._file, right)
        except FileNotFoundError:
            return
        except FileExistsError:  # of a process that died with it, as the lock is still there
            right.unlink(missing_ok=True)
            return
        if _stamp(right) == dead:
            self._file.unlink(missing_ok=True)
        right.unlink(missing_ok=True)


@contextmanager
def locked(lock: BaseJournalFileLock) -> Iterator[None]:
    """Hold it."""
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _stamp(file: Path) -> _Stamp | None:
    """Distinguishes a lock from the next one of the same name."""
    try:
        info = file.stat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns


def _drop_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(max(0, path.stat().st_size - 1))
        if file.read(1) in (b"", b"\n"):
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
