"""Lightning's callbacks that break a promise of hpcexp, or need what a job does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpcexp.schema.keys import TARGET

_CALLBACKS = "pytorch_lightning.callbacks."
REFUSED = {
    f"{_CALLBACKS}gradient_accumulation_scheduler.GradientAccumulationScheduler": (
        "it changes the global batch during training, which data.global_batch_size fixes",
        "trainer.accumulate_grad_batches=N for the whole training",
    ),
    f"{_CALLBACKS}batch_size_finder.BatchSizeFinder": (
        "it changes the batch size that data.global_batch_size fixes",
        "hpcexp train -m data.global_batch_size=64,128,256",
    ),
    f"{_CALLBACKS}lr_finder.LearningRateFinder": (
        "it trains steps that no plan has, and changes optimizer.lr",
        "hpcexp train -m optimizer.lr=0.001,0.003,0.01",
    ),
}
"""Class → why not, and what to do."""
_PROGRESS_BAR = f"{_CALLBACKS}progress.progress_bar.ProgressBar"

IsSubclass = Callable[[Any, str], bool | None]
"""Whether a target is a class that inherits from another, by their names; None where that is not known."""


def refused_callbacks(callbacks: Mapping[str, Any], is_subclass: IsSubclass) -> list[str]:
    """What a job cannot have of the section `callbacks`."""
    targets = {
        f"callbacks.{name}": node[TARGET]
        for name, node in callbacks.items()
        if isinstance(node, Mapping) and node.get(TARGET) is not None
    }
    problems = [
        refusal(path, kind) for path, target in targets.items() for kind in REFUSED if is_subclass(target, kind)
    ]
    if len(bars := [path for path, target in targets.items() if is_subclass(target, _PROGRESS_BAR)]) > 1:
        problems.append(f"{bars[0]} and {bars[1]} are progress bars: there can be one.\nFix: ~{bars[1]}")
    return problems


def refusal(path: str, kind: str) -> str:
    """That a callback which is one of the classes in `REFUSED` cannot be used."""
    why, fix = REFUSED[kind]
    return f"{path}: {kind.rpartition('.')[2]} cannot be used, as {why}.\nFix: {fix}."
