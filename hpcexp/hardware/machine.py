"""What this machine has, seen without importing torch."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from hpcexp.hardware.gpus import Gpu, parse_cpulist, survey, visible_gpus


@dataclass(frozen=True)
class Machine:
    """Devices a job could use here."""

    host: str
    num_cores: int
    """Cores this process may use: its affinity, not the machine's size."""
    num_gpus: int
    """NVIDIA devices, after CUDA_VISIBLE_DEVICES."""
    look: Callable[[], tuple[Gpu, ...]] = tuple
    """Reports how those devices are used; empty if nothing can report it."""


def this_machine() -> Machine:
    """The machine hpcexp runs on."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = num_gpus(visible)
    return Machine(socket.gethostname(), num_cores(), number, partial(_seen, visible, number))


def gpus_now() -> tuple[Gpu, ...]:
    """The visible GPUs as they are at this moment."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible_gpus(survey().gpus, visible, num_gpus(visible))


@cache
def _seen(visible: str | None, number: int) -> tuple[Gpu, ...]:
    """The visible GPUs, looked at once for all plans of a command; a job looks again when it starts."""
    return visible_gpus(survey().gpus, visible, number) if number else ()


def cores() -> frozenset[int] | None:
    """Numbers of the cores this process may use; None if the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def take_cores(shares: str | None, local_rank: int) -> None:
    """Keep this process, a rank, and what it starts on its share of the node's cores, as `DeviceLease` spells them."""
    if shares:
        os.sched_setaffinity(0, parse_cpulist(shares.split(";")[local_rank]))


def num_cores() -> int:
    """Cores this process may use."""
    return len(cores() or ()) or os.cpu_count() or 1


def num_gpus(visible: str | None, dev: Path = Path("/dev")) -> int:
    """NVIDIA device nodes, or as many of them as `visible` (CUDA_VISIBLE_DEVICES) lets through."""
    present = sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in dev.glob("nvidia*"))
    if visible is None:
        return present
    named = [v for v in visible.split(",") if v.strip()]
    usable = named[: named.index("-1")] if "-1" in named else named
    return min(present, len(usable))
