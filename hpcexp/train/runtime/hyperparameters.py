"""`save_hyperparameters()` with any argument: what Lightning cannot copy stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pytorch_lightning.core.mixins import hparams_mixin
from pytorch_lightning.trainer import trainer
from pytorch_lightning.utilities import parsing
from torch import nn


def accept_any_hyperparameters() -> None:
    """Have Lightning copy only what can be copied, and keep what cannot be pickled.

    It fails for an open file or a lock, doubles a module, and takes a lambda out of `hparams`. It also hands them
    to the logger, and fails where module and data module differ in one of the same name: the plan has them.
    """
    lenient: Any = SimpleNamespace(copy=copy.copy, deepcopy=_copied)
    parsing.__dict__["clean_namespace"] = _keep
    trainer.__dict__["_log_hyperparams"] = _keep
    for module in (parsing, hparams_mixin):
        module.__dict__["copy"] = lenient


def _keep(hparams: Any) -> None:
    """Nothing: no rank gets them by pickle, and the logger has the plan's."""


def _copied(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value
    try:
        if not isinstance(value, dict):
            return copy.deepcopy(value)
        made: Mapping[str, Any] = type(value)({key: _copied(item) for key, item in value.items()})
    except Exception:  # noqa: BLE001 - copying runs whatever an object has for it
        return value
    return made
