"""What a user's Lightning classes are and decide themselves, as far as their source says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcexp.schema.keys import TARGET
from hpcexp.targets.classes import ancestry
from hpcexp.targets.nodes import wrong_target

LIGHTNING_MODULE = "pytorch_lightning.core.module.LightningModule"
DATA_MODULE = "pytorch_lightning.core.datamodule.LightningDataModule"
CALLBACK = "pytorch_lightning.callbacks.callback.Callback"
ITERABLE = "torch.utils.data.IterableDataset"
NO_CALLBACK = "it makes no Lightning callback; let its class inherit from lightning.pytorch.Callback"


@dataclass(frozen=True)
class ModuleSource:
    """A model's class. None where its source does not say."""

    is_lightning: bool | None
    configures_optimizers: bool | None = None
    """Whether it has a `configure_optimizers` of its own, or an inherited one that is not Lightning's."""
    is_manual: bool = False
    """Whether it sets `automatic_optimization = False`."""


_UNKNOWN = ModuleSource(None)


def module_source(target: Any) -> ModuleSource:
    """What the source of the model `target` says."""
    found = ancestry(target, frozenset({LIGHTNING_MODULE})) if isinstance(target, str) else None
    if found is None:
        return _UNKNOWN
    if found.root is None:
        return ModuleSource(False) if found.is_complete else _UNKNOWN
    return ModuleSource(
        True, found.overrides("configure_optimizers"), is_manual=found.assigns("automatic_optimization", value=False)
    )


def is_subclass(target: Any, root: str) -> bool | None:
    """Whether `target` makes an object of a class below `root`; None where its source does not say."""
    found = ancestry(target, frozenset({root})) if isinstance(target, str) else None
    if found is None:
        return None
    return True if found.root == root else False if found.is_complete else None


def is_endless(target: Any) -> bool:
    """Whether `target` is known to make an IterableDataset without a length."""
    found = ancestry(target, frozenset({ITERABLE})) if isinstance(target, str) else None
    return found is not None and found.root == ITERABLE and found.overrides("__len__") is False


def callback_problems(callbacks: Mapping[str, Any]) -> Iterator[str]:
    """Entries of `callbacks` whose target is known to make something else."""
    for name, node in callbacks.items():
        target = node.get(TARGET) if isinstance(node, Mapping) else None
        if is_subclass(target, CALLBACK) is False:
            yield wrong_target(f"callbacks.{name}", target, NO_CALLBACK)
