"""Which rank a process is."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rank:
    """Which rank this process is, and its device."""

    rank: int
    world_size: int
    device: torch.device
