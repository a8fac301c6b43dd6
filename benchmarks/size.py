"""How much a benchmark does: what its figures need, or, for the tests, the least that shows whether it works."""

from __future__ import annotations

import os
from typing import TypeVar

_VARIABLE = "HPCEXP_BENCHMARKS_SIZE"
"""In the environment, as some benchmarks measure in processes of their own."""
T = TypeVar("T")


def choose_smallest() -> None:
    """Have `size` return the smallest, here and in every process that starts from here."""
    os.environ[_VARIABLE] = "smallest"


def size(usual: T, smallest: T) -> T:
    """The usual value, unless the smallest were chosen."""
    return smallest if os.environ.get(_VARIABLE) == "smallest" else usual
