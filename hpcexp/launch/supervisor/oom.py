"""Whether the kernel has ended processes because memory ran out: that of the machine, or what a container may take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path


def oom_kills(counters: Iterable[Path] | None = None) -> int:
    """A number that rises with each process that the kernel kills for memory, here or in this control group."""
    return sum(_kills(file) for file in (_counters() if counters is None else counters))


def _kills(file: Path) -> int:
    """0 where the kernel does not say."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _counters(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """cgroups(7): `0::/PATH` of version 2, `N:memory:/PATH` of version 1. Batch systems limit each job by its group."""
    yield Path("/proc/vmstat")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for number, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if number == "0":
            yield groups / path.lstrip("/") / "memory.events"
        elif "memory" in kinds.split(","):
            yield groups / "memory" / path.lstrip("/") / "memory.oom_control"
