"""Settings that a user's LightningModule does not read, because it decides the same itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcexp.schema.keys import Trainer
from hpcexp.targets.lightning_module import ModuleSource

OPTIMIZERS = ("optimizer", "scheduler")
"""What `configure_optimizers` decides."""
STEPS = ("task", "data.augment")
"""What `training_step` and `validation_step` decide."""


@dataclass(frozen=True)
class Decision:
    """A method of the module, and the settings in whose place it decides."""

    method: str
    unused: tuple[str, ...]
    """Settings that are not read."""
    paths: tuple[str, ...]
    """Those of them that nobody may ask for."""
    fix: str


def decisions(source: ModuleSource, task: Mapping[str, Any]) -> list[Decision]:
    """What the module decides itself. A `task` may still be chosen: its monitor is the default of `trainer.monitor`."""
    if not source.is_lightning:
        return []
    fix = "leave it out; the module's own arguments are those under `model`"
    asked = (*(f"task.{key}" for key in task if key != "monitor"), "data.augment")
    found = [Decision("training_step", STEPS, asked, fix)]
    if source.configures_optimizers:
        fix = "leave it out; give the module's own arguments (such as model.lr=…), or take out its configure_optimizers"
        found.append(Decision("configure_optimizers", OPTIMIZERS, OPTIMIZERS, fix))
    return found


def manual_problems(source: ModuleSource, trainer: Trainer, target: str) -> Iterator[str]:
    """What Lightning cannot do for a module that sets `automatic_optimization = False`."""
    ways = (
        ("gradient_clip_val", trainer.gradient_clip_val, None, "self.clip_gradients(optimizer, …)"),
        ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "count batch_idx"),
    )
    for key, value, default, way in ways:
        if source.is_manual and value != default:
            yield (
                f"trainer.{key}={value}: {target} steps its optimizers itself.\n"
                f"Fix: trainer.{key}={'null' if default is None else default}, and in training_step: {way}."
            )


def unused_problem(setting: str, place: str, decision: Decision, target: str) -> str:
    """That a setting was asked for in a place and is not read."""
    where = "" if place == "command line" else f" ({place})"
    return f"{setting}{where}: {target} does not read it: its own {decision.method} decides.\nFix: {decision.fix}."


def without_unused(config: Mapping[str, Any], unused: Iterable[str]) -> dict[str, Any]:
    """The configuration without what is not read; sections stay, empty."""
    left = dict(config)
    for path in unused:
        section, _, key = path.partition(".")
        given = left.get(section)
        if not key:
            left[section] = {}
        elif isinstance(given, Mapping):
            left[section] = {name: value for name, value in given.items() if name != key}
    return left
