"""Values of a checkpoint as plain data, which `torch.load(weights_only=True)` loads."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpcexp.errors import HpcexpError

_ATOMS = (str, int, float, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


def seen(tensor: Tensor) -> Tensor:
    """The tensor without its history, and without what it does not show of a larger storage, which would be saved."""
    tensor = tensor.detach()
    if type(tensor) is Tensor and tensor.layout is torch.strided and tensor.nbytes < tensor.untyped_storage().nbytes():
        return tensor.clone()
    return tensor


def plain(value: Any, path: str = "", *, tensor: Callable[[Tensor], Tensor] = seen) -> Any:
    """A copy of `value` with paths, enums and sets as plain data and `tensor(t)` for every tensor t.

    HpcexpError for an object that `weights_only` refuses.
    """
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, Mapping):
        return {plain(k, path): plain(v, f"{path}.{k}" if path else str(k), tensor=tensor) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(v, f"{path}[{i}]", tensor=tensor) for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, set | frozenset):
        return sorted(plain(v, path) for v in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise HpcexpError(
        f"The checkpoint's entry {path} is a {type(value).__module__}.{type(value).__qualname__}, "
        "which is no plain data.\n"
        "Fix: let the state_dict() that gives it return numbers, strings, tensors, lists and dicts."
    )
