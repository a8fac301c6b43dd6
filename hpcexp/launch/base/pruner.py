"""Whether a job is to end before its time, by somebody who sees others like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pruner:
    """Asked after each validation of a job."""

    metric: str
    """What it judges by."""
    is_to_end: Callable[[int, float], bool]
    """Called with the epochs that were trained and the metric's value after them."""

    def answering(self, answer: Callable[[int, bool], None]) -> Callable[[int, float], None]:
        """What is called for a report, and tells the verdict."""
        return lambda epoch, value: answer(epoch, self.is_to_end(epoch, value))
