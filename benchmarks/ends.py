"""When training steps ended, as `benchmarks.stopwatch.Stopwatch` writes it, and how long a step takes by that."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.size import size

ENDS_FILE = "ends-{rank}.json"
"""What each rank leaves in its Trainer's root directory."""
WINDOW = size(10, 1)
"""Steps between two looks at the clock. A run that journals as often has one write in each."""
WARM_UP, MEASURED = 1, 3
"""Windows that do not count, and those that do."""
STEPS = (WARM_UP + MEASURED) * WINDOW


def step_s(ends: Sequence[float]) -> float:
    """Seconds a step of the window that is in the middle: what disturbs the machine for a moment falls out."""
    looks = ends[WARM_UP * WINDOW - 1 :: WINDOW]
    return statistics.median(later - earlier for earlier, later in pairwise(looks)) / WINDOW


def read(directory: Path, rank: int = 0) -> list[float]:
    """Unix seconds at which `rank` of the one run below `directory` ended its steps."""
    (file,) = directory.rglob(ENDS_FILE.format(rank=rank))
    ends: list[float] = json.loads(file.read_text())
    return ends
