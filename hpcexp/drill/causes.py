"""What in an experiment makes ranks compute something else than one device would, whatever the code around it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hpcexp.plan import Plan

if TYPE_CHECKING:
    from torch.nn import Module

_NAMED = 3
"""Layers of a kind that a message names; of more it gives the number."""


def causes(plan: Plan) -> list[str]:
    """Each with a fix; none if the model cannot be built, which the training reports."""
    try:
        model = _model(plan)
    except Exception:  # noqa: BLE001 - the user's own code; the training reports it better
        return []
    is_synced = plan.settings.trainer.extra.get("sync_batchnorm")
    norms = {} if is_synced else _layers(model, _is_batch_norm)
    found = [_batch_norm(kind, names) for kind, names in norms.items()]
    found += [_dropout(kind, names) for kind, names in _layers(model, _drops).items()]
    if _draws_by_rank(plan):
        found.append("data.augment: every rank draws its own random numbers.\nFix: data.augment=null for the drill")
    return found


def _batch_norm(kind: str, names: list[str]) -> str:
    return (
        f"{kind} ({_named(names)}): each rank normalises by its own share of the batch.\n"
        "Fix: trainer.extra.sync_batchnorm=true on GPUs, or a norm that looks at one sample, such as GroupNorm"
    )


def _dropout(kind: str, names: list[str]) -> str:
    return f"{kind} ({_named(names)}): every rank draws its own random numbers.\nFix: model.dropout=0 for the drill"


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _layers(model: Module, is_wanted: Callable[[Module], bool]) -> dict[str, list[str]]:
    """Class → names in the model of the layers that are wanted."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, layer in model.named_modules():
        if is_wanted(layer):
            found[type(layer).__name__].append(name.removeprefix("model."))
    return found


def _model(plan: Plan) -> Module:
    """The module as the job builds it, without memory for its weights where it can do without."""
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning(is_rank=False)
    import torch

    from hpcexp.train.engine.builders import make_module

    with suppress(Exception), torch.device("meta"):  # what cannot be built so is built as the job does it
        return make_module(plan, None)
    return make_module(plan, None)


def _is_batch_norm(layer: Module) -> bool:
    from torch.nn import SyncBatchNorm
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm)


def _draws_by_rank(plan: Plan) -> bool:
    """Whether an augmentation is not one of those that draw for the whole global batch."""
    from hpcexp.data.augment import Augmentation
    from hpcexp.targets.instantiate import instantiate

    augment = plan.settings.data.augment
    return bool(augment) and not isinstance(instantiate(augment, path="data.augment"), Augmentation)


def _drops(layer: Module) -> bool:
    from torch.nn.modules.dropout import _DropoutNd

    share = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0.0)
    return isinstance(share, float) and share > 0
