"""Processes that tests kill or race."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from racers import Racers, racing


@pytest.fixture(scope="module")
def racers() -> Iterator[Racers]:
    """Two processes that do the same thing at the same moment."""
    with racing() as racers:
        yield racers


@pytest.fixture(scope="module")
def killer() -> Iterator[Racers]:
    """A process of its own, which may be forked as it has no threads."""
    with racing(1) as one:
        yield one
