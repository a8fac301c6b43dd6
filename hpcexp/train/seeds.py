"""Random numbers: the same initial weights on every rank, a stream of its own for each rank's dropout."""

from __future__ import annotations

import random
import sys

import torch


def seed_everything(seed: int) -> None:
    """Seed Python, torch on all devices, and NumPy where it is imported."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def seed_rank(seed: int, rank: int) -> None:
    """After the model is built: dropout and augmentation differ from rank to rank."""
    if rank:
        seed_everything((seed + 1_000_003 * rank) % 2**32)
