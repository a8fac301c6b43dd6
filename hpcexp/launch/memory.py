"""Whether the kernel has ended processes because memory ran out."""

from __future__ import annotations

from pathlib import Path


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes of this machine the kernel has killed for their memory since it started (0: unknown)."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
