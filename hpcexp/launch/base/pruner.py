"""Deciding whether a job ends early, by comparing it with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pruner:
    """Decides after each validation of a job."""

    metric: str
    """The metric that it compares."""
    is_to_end: Callable[[int, float], bool]
    """Called with the number of trained epochs and the metric's value after them."""

    def answering(self, answer: Callable[[int, bool], None]) -> Callable[[int, float], None]:
        """A handler of reports that sends each verdict through `answer`."""
        return lambda epoch, value: answer(epoch, self.is_to_end(epoch, value))
