"""Hyperparameters in a checkpoint: those that are plain data. The plan has all that was configured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule

from hpcexp.train.checkpointing.plain_data import plain

_KEYS = (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)
_TYPES = (LightningModule.CHECKPOINT_HYPER_PARAMS_TYPE, LightningDataModule.CHECKPOINT_HYPER_PARAMS_TYPE)
"""The class of a configuration that was saved whole."""
_LEFT_OUT: Any = object()


def as_data(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint with only such hyperparameters as are plain data."""
    kept = {key: value for key, value in checkpoint.items() if key not in _TYPES}
    return {key: _data(value) if key in _KEYS else value for key, value in kept.items()}


def left_out(*of: Any) -> list[str]:
    """The names of hyperparameters of a module and a data module that checkpoints do not hold."""
    return [name for owner in of if owner is not None for name in _lost(owner.hparams)]


def _data(value: Any) -> Any:
    """The value, without those entries of mappings that are no plain data; `_LEFT_OUT` where it is none itself."""
    try:
        if isinstance(value, Mapping):
            entries = {plain(key): _data(value[key]) for key in value if not _is_missing(value, key)}
            return {key: entry for key, entry in entries.items() if entry is not _LEFT_OUT}
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple)
        return plain(list(value) if is_list else value)
    except Exception:  # noqa: BLE001 - also a configuration that lacks a value
        return _LEFT_OUT


def _is_missing(value: Mapping[Any, Any], key: Any) -> bool:
    """Whether a configuration lacks the value."""
    try:
        value[key]
    except Exception:  # noqa: BLE001 - of omegaconf
        return True
    return False


def _lost(value: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of what `_data` leaves out."""
    for key in value:
        name = f"{path}{key}"
        try:
            item = value[key]
        except Exception:  # noqa: BLE001 - a value that a configuration lacks
            yield name
            continue
        if isinstance(item, Mapping):
            yield from _lost(item, f"{name}.")
        elif _data(item) is _LEFT_OUT:
            yield name
