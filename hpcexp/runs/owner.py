"""The process that works on a directory, recognised by what no clock and no later process can change."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpcexp.runs.beat import silence
from hpcexp.runs.records.status import Owned


@dataclass(frozen=True)
class Owner:
    """A process at work, as `status.json` and the files of a sweep's drivers name it."""

    host: str
    pid: int
    boot: str | None = None
    """Id of the boot of its machine."""
    spaces: str | None = None
    """The namespaces that give `pid` and `ticks` their meaning: a container has its own."""
    ticks: int | None = None
    """Its start in clock ticks since boot: a later process with the same number has another."""
    token: str | None = None
    """Names one attempt of one process."""

    @classmethod
    def this(cls) -> Owner:
        """The process itself, as the owner of a new attempt."""
        pid = os.getpid()
        stat = _stat(pid)
        return cls(socket.gethostname(), pid, _boot(), _spaces(), stat and stat[1], secrets.token_hex(8))

    @classmethod
    def of(cls, record: Owned) -> Owner | None:
        """The owner that a record names; None where it names none."""
        if record.pid is None:
            return None
        host = socket.gethostname() if record.host is None else record.host
        return cls(host, record.pid, record.boot, record.spaces, record.ticks, record.token)

    def facts(self) -> dict[str, Any]:
        """The fields of a record that names it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its process, if it lives, is one that this process sees."""
        is_here = self.host == socket.gethostname()
        return is_here and self.boot in (None, _boot()) and self.spaces in (None, _spaces())

    @property
    def was_rebooted(self) -> bool:
        """Whether a host of that name, which this one is, has been booted since."""
        return self.host == socket.gethostname() and self.boot not in (None, _boot())

    def is_running(self) -> bool | None:
        """Whether its process runs; None where it cannot be seen from here."""
        if not self.is_of_this_boot:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        stat = _stat(self.pid)
        if stat is None:  # hidden from other users (proc(5), hidepid), or no Linux
            return True if self.ticks is None else None
        state, ticks = stat
        return state not in "ZX" and self.ticks in (None, ticks)


def is_alive(record: Owned, beat: Path) -> bool | None:
    """Whether the owner that a record names is at work; None if unknown, which is not dead.

    Its process decides where it can be seen. From elsewhere its beat does, by the file server's clock.
    """
    owner = Owner.of(record)
    if owner is None:
        return None
    if (runs := owner.is_running()) is not None:
        return runs
    if (last := silence(beat)) is not None:
        return last.is_alive
    return False if owner.was_rebooted else None


def _stat(pid: int) -> tuple[str, int] | None:
    """State of a process, and its start in clock ticks since boot; None where that cannot be read."""
    try:
        # proc(5): field 3 is the state, field 22 the start; field 2, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


@cache
def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _spaces() -> str | None:
    """Process numbers belong to a pid namespace; the start of a process is counted in a time namespace."""
    try:
        return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "time"))  # noqa: PTH115 - no path
    except OSError:
        return None
