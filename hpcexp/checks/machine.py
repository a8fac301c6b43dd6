"""What this machine has, seen without importing torch."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Devices a job could use here."""

    host: str
    num_cores: int
    """Cores this process may use: its affinity, not the machine's size."""
    num_gpus: int
    """NVIDIA devices, after CUDA_VISIBLE_DEVICES."""


def this_machine() -> Machine:
    """The machine hpcexp runs on."""
    return Machine(socket.gethostname(), num_cores(), num_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")))


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus(visible: str | None, dev: Path = Path("/dev")) -> int:
    """NVIDIA device nodes, or as many of them as `visible` (CUDA_VISIBLE_DEVICES) lets through."""
    present = sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in dev.glob("nvidia*"))
    if visible is None:
        return present
    named = [v for v in visible.split(",") if v.strip()]
    usable = named[: named.index("-1")] if "-1" in named else named
    return min(present, len(usable))
