"""CPU time of a training step with what exact resume needs, against the same job without it; one thread, one process.

Both are whole fits as a job does them (`benchmarks.step`): journal, validation, best weights, and both checkpoints at
the end. The other side leaves out what lets a run stop anywhere and resume: `Interrupts`, which asks after every step
whether a signal came, a write failed or a checkpoint is due (`checkpoint.every_s=60`), and `Resume`. The position in
the data is an integer that both count.

The agreement of several ranks is not in it: it is an all-reduce of one number beside the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.measure import Row, interleaved
from benchmarks.size import size
from hpcexp.plan import Plan

PAIRS = 15
GOAL = 1.01
"""0.99 of the steps in a second."""
USUAL = ("model.hidden=[512,512]", "data.global_batch_size=256", "trainer.max_epochs=60")
SMALLEST = size((), ("trainer.max_epochs=1",))
"""A step of some milliseconds, which is still short for a training that is worth resuming."""


def rows(pairs: int, scratch: Path) -> Iterator[Row]:
    """The table's lines."""
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning(is_rank=False)
    import torch

    from benchmarks.step import METER, ONE_THREAD, hpcexp_step
    from hpcexp.compose.composer import Composer
    from hpcexp.planner import prepare

    torch.set_num_threads(1)

    def plan(*overrides: str) -> Plan:
        return prepare(
            Composer(scratch).compose([*overrides, *SMALLEST, *ONE_THREAD, METER]), scratch, ["hpcexp", "train"]
        )

    shortest, usual = plan(), plan(*USUAL)
    yield _row("a step of `digits_mlp` with exact resume / without", lambda: hpcexp_step(shortest, scratch), pairs)
    what = "a step of 512 × 512, batch 256, with exact resume / without"
    yield _row(what, lambda: hpcexp_step(usual, scratch), pairs)


def _row(what: str, step: Callable[[], float], pairs: int) -> Row:
    def without() -> float:
        with _nothing_kept():
            return step()

    taken = interleaved({"with": step, "without": without}, pairs)
    return Row(what, taken["with"], taken["without"], GOAL)


@contextmanager
def _nothing_kept() -> Generator[None, None, None]:
    """Jobs without `Interrupts` and `Resume`."""
    from hpcexp.train.engine import fit
    from hpcexp.train.runtime.fast_hooks import FastCallback

    class Nothing(FastCallback):
        """Takes what either takes, and does nothing."""

        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            """Nothing."""

        def after_batch(self, *_args: Any) -> None:
            """What `Interrupts` does after a batch."""

    with patch.object(fit, "Interrupts", Nothing), patch.object(fit, "Resume", Nothing):
        yield
