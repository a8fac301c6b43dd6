"""The kills of a drill: at random steps, of every kind, all from one seed."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

MARGIN = 4
"""Steps at a training's end that are not aimed at: a signal is heard a step or two later, and the run ends with it."""


@dataclass(frozen=True)
class KillMode:
    """Which process a kill ends, and with which signal."""

    signal: signal.Signals
    rank: int | None
    """None for the supervisor."""

    @property
    def text(self) -> str:
        """`SIGKILL to rank 1`."""
        return f"{self.signal.name} to {'the supervisor' if self.rank is None else f'rank {self.rank}'}"

    @property
    def exit_status(self) -> int:
        """What the supervisor ends with."""
        if self.rank is not None:
            return 1
        return 128 + self.signal if self.signal == signal.SIGTERM else -self.signal


def kill_modes(rng: random.Random, number: int, world_size: int) -> list[KillMode]:
    """`number` kills in random order; among three, each of the three kinds."""
    found: list[KillMode] = []
    while len(found) < number:
        kinds = [
            KillMode(signal.SIGTERM, None),
            KillMode(signal.SIGKILL, None),
            KillMode(signal.SIGKILL, rng.randrange(world_size)),
        ]
        rng.shuffle(kinds)
        found += kinds
    return found[:number]


def aims(rng: random.Random, number: int, last: int) -> list[int]:
    """Different steps from 1 to `last`, rising."""
    return sorted(rng.sample(range(1, last + 1), number))
