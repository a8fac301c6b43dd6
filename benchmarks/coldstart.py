"""CPU time of a cold run of `digits_mlp`, against importing torch and building an optimizer.

`until its first step` is the planning half of the command (the same command with `launch=dry`) and the rank's process
from its start to the end of its first step. `the whole command` is a run of one step with all that belongs to a run:
planning, supervisor, rank, validation, test, both checkpoints, and the process that draws the pictures; tracking is
off. The peer is `benchmarks.stock`: one process, no validation, no test, no checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Row, cpu_seconds, interleaved, metered

PAIRS = 4
GOAL = 1.5

FLOOR = ["-c", "import torch; torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())"]
OURS = [
    *("-m", "hpcexp", "train", "trainer.max_steps=1", "tracking=off", "hardware=cpu", "hardware.threads_per_rank=1"),
    "callbacks.meter._target_=benchmarks.meter.Meter",
]
STOCK = ["-m", "benchmarks.stock", "hydra/output=default", "trainer.max_steps=1"]


class Start(NamedTuple):
    """Seconds of CPU time."""

    whole: float
    until_first_step: float


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""

    def floor(directory: Path) -> Start:
        whole = cpu_seconds(FLOOR, directory)
        return Start(whole, whole)

    def stock(directory: Path) -> Start:
        whole = cpu_seconds(STOCK, directory)
        return Start(whole, metered(directory, "until_first_step_s"))

    def ours(directory: Path) -> Start:
        planning = cpu_seconds([*OURS, "launch=dry"], directory)
        whole = cpu_seconds(OURS, directory)
        return Start(whole, planning + metered(directory, "until_first_step_s"))

    ways = {"floor": floor, "stock": stock, "ours": ours}
    taken = interleaved({name: _in_new_directory(way, scratch) for name, way in ways.items()}, pairs)
    whole = {name: [start.whole for start in starts] for name, starts in taken.items()}
    first = {name: [start.until_first_step for start in starts] for name, starts in taken.items()}
    against = whole["floor"]
    return [
        Row("cold `hpcexp train` until its first step / torch + optimizer", first["ours"], against, GOAL),
        Row("stock Lightning + Hydra until its first step / torch + optimizer", first["stock"], against),
        Row("the whole command `hpcexp train trainer.max_steps=1` / torch + optimizer", whole["ours"], against),
        Row("the whole stock script of one step / torch + optimizer", whole["stock"], against),
    ]


def _in_new_directory(way: Callable[[Path], Start], scratch: Path) -> Callable[[], Start]:
    def run() -> Start:
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            return way(Path(directory))

    return run
