"""What is trained, and how: frozen parameters, optimizers' groups, modes of modules. Lightning saves none of it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import StochasticWeightAveraging

_Groups = list[list[list[str]]]
"""Names of parameters, by optimizer and group."""


def trained_parts(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Plain data of a training that may have frozen or unfrozen parts since it began."""
    return {
        "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
        "evaluating": [name for name, part in module.named_modules() if not part.training],
        "untracked": [name for name, part in module.named_modules() if not getattr(part, "track_running_stats", True)],
        "groups": _groups(trainer, module),
    }


def restore_groups(trainer: pl.Trainer, module: pl.LightningModule, saved: dict[str, Any]) -> None:
    """Freeze and unfreeze, and give optimizers the groups that they had; their values are Lightning's to load.

    After the optimizers are made, as at the beginning of training: what is made then may look at what is frozen.
    """
    parameters, frozen = dict(module.named_parameters()), set(saved["frozen"])
    for name, parameter in parameters.items():
        if parameter.requires_grad == (name in frozen):
            parameter.requires_grad_(name not in frozen)
    groups: _Groups = saved["groups"]
    if len(groups) != len(trainer.optimizers):
        return
    for optimizer, is_now, was in zip(trainer.optimizers, _groups(trainer, module), groups, strict=True):
        if is_now != was and all(name in parameters for group in was for name in group):
            optimizer.param_groups = []
            for names in was:
                optimizer.add_param_group({"params": [parameters[name] for name in names]})


def restore_modes(module: pl.LightningModule, saved: dict[str, Any]) -> None:
    """Which parts evaluate while the others are trained, and which batch norms keep no statistics."""
    evaluating, untracked = set(saved["evaluating"]), set(saved["untracked"])
    for name, part in module.named_modules():
        part.training = name not in evaluating
        if hasattr(part, "track_running_stats"):
            part.track_running_stats = name not in untracked


def restore_averaging(trainer: pl.Trainer, module: pl.LightningModule, optimizers: list[dict[str, Any]]) -> None:
    """Let SWA resume where it was: it makes its schedule at the start of an epoch only, and changes the rate by that.

    `optimizers`: their saved states.
    """
    averaging = [c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        if callback._scheduler_state is None or callback._initialized:
            continue
        callback.on_train_epoch_start(trainer, module)
        for optimizer, state in zip(trainer.optimizers, optimizers, strict=True):
            for group, values in zip(optimizer.param_groups, state["param_groups"], strict=True):
                group.update({name: value for name, value in values.items() if name != "params"})


def _groups(trainer: pl.Trainer, module: pl.LightningModule) -> _Groups:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]
