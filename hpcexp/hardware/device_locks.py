"""Locks on devices that all commands of a machine share. They end with the process that holds them, however it ends.

The directory is one that every user may write to, so nothing in it is trusted: no link is followed, and only a plain
file that has no second name is written to.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_DIRECTORY = Path("/tmp/hpcexp-device-locks")  # noqa: S108 - TMPDIR differs between users and jobs
"""Unless HPCEXP_DEVICE_LOCKS in the environment names another directory on this machine, the same for all users."""
GATE_S = 10.0
"""How long commands that look for free devices wait for each other; each takes milliseconds."""
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_BYTES = 4096


@dataclass(frozen=True)
class LockHolder:
    """Who holds a device, as it says itself."""

    pid: int
    host: str
    """As processes in a container see it; the machine is the same."""
    user: str
    run_dir: str
    share: int
    """How many jobs this one bears on its devices, itself included."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} ({self.run_dir})" if self.pid else "a process that does not say more"


UNKNOWN = LockHolder(0, "", "", "", 1)
"""Who holds a device without a word, on a full disk."""


def locks_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of this machine's device locks."""
    return Path(environment.get("HPCEXP_DEVICE_LOCKS") or DEFAULT_DIRECTORY)


def has_room(holders: Sequence[LockHolder], share: int) -> bool:
    """Whether one more job may be on a device: as many as the most exclusive of them bears."""
    return len(holders) < min([share, *(holder.share for holder in holders)])


class DeviceLocks:
    """The directory while no other command takes devices. Devices that were taken stay so after it."""

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def holders(self) -> dict[str, list[LockHolder]]:
        """Device → jobs that are on it now."""
        found: dict[str, list[LockHolder]] = {}
        for name in sorted(os.listdir(self._directory)):  # noqa: PTH208 - of an open directory
            match = re.fullmatch(r"(core-\d+|cuda-.+)\.\d+", name)
            if match and (holder := self._holder(name)) is not None:
                found.setdefault(match[1], []).append(holder)
        return found

    def take(self, device: str, holder: LockHolder) -> int:
        """An open file that holds one of the locks of `device` until it is closed."""
        number = 0
        while True:
            fd = self._open(f"{device}.{number}", create=True)
            if _lock(fd):
                _write(fd, json.dumps(asdict(holder)))
                return fd
            os.close(fd)
            number += 1

    def _holder(self, name: str) -> LockHolder | None:
        """None for a lock that is free, or is none of ours."""
        try:
            fd = self._open(name, create=False)
        except OSError:
            return None
        try:
            return None if _lock(fd) else _read(fd)
        finally:
            os.close(fd)

    def _open(self, name: str, *, create: bool) -> int:
        try:
            fd = os.open(name, _OPEN, dir_fd=self._directory)
        except FileNotFoundError:
            if not create:
                raise
            # Exclusively: kernels let nobody create over another user's file in such a directory (protected_regular).
            fd = os.open(name, _OPEN | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._directory)
            os.fchmod(fd, 0o666)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(fd)
            raise PermissionError(1, "it is not a plain file", name)
        return fd


@contextmanager
def device_locks(path: Path, *, create: bool = True) -> Iterator[DeviceLocks | None]:
    """The device locks in `path`, one command at a time. None where there is no such directory and `create` is false.

    OSError where it cannot be used, TimeoutError where another command is stuck in it.
    """
    try:
        directory = _directory(path, create=create)
    except FileNotFoundError:
        if create:
            raise
        yield None
        return
    try:
        deadline = time.monotonic() + GATE_S
        while not _lock(directory):
            if time.monotonic() > deadline:
                raise TimeoutError(0, f"another command has kept it for {GATE_S:g} s")
            time.sleep(0.01)
        yield DeviceLocks(directory)
    finally:
        os.close(directory)


def _directory(path: Path, *, create: bool) -> int:
    if create:
        # With these permissions from its first moment on, or another user's command could find it closed.
        before = os.umask(0)
        try:
            path.mkdir(mode=0o1777)
        except FileExistsError:
            pass
        finally:
            os.umask(before)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(fd: int, text: str) -> None:
    """On a full disk the lock is held too, without a name."""
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)


def _read(fd: int) -> LockHolder:
    try:
        said = json.loads(os.pread(fd, _MOST_BYTES, 0))
        host, user, run_dir = (_printable(said[key]) for key in ("host", "user", "run_dir"))
        return LockHolder(int(said["pid"]), host, user, run_dir, int(said["share"]))
    except (ValueError, KeyError, TypeError):
        return UNKNOWN


def _printable(value: object) -> str:
    """Without what could steer the terminal of another user."""
    return "".join(c for c in str(value) if c.isprintable())
