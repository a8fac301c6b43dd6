"""Random numbers: the same initial weights on every rank, a stream of its own for each rank's dropout."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_everything(seed: int) -> None:
    """Seed Python, torch on all devices, and NumPy where it is imported."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed`, and afterwards the process's own streams as they were."""
    cpu = torch.device("cpu")
    before = random_state(cpu)
    seed_everything(seed % 2**32)
    try:
        yield
    finally:
        set_random_state(before, cpu)


def mixed(*numbers: int) -> int:
    """One seed of several numbers: neighbours of one do not meet neighbours of another."""
    value = 0
    for number in numbers:
        value = (value * 6_364_136_223_846_793_005 + number + 1_442_695_040_888_963_407) % 2**63
    return value


def seed_rank(seed: int, rank: int) -> None:
    """After the model is built: dropout and augmentation differ from rank to rank."""
    if rank:
        seed_everything((seed + 1_000_003 * rank) % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where this process's streams of random numbers stand, as plain data: Python, torch, `device`, NumPy."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [name, keys.tolist(), *rest]
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Resume where `random_state` was taken."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if "numpy" in sys.modules and "numpy" in state:
        numpy = sys.modules["numpy"]
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
