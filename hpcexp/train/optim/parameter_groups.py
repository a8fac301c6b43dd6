"""Parameters that patterns name: which are not decayed, which are not trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hpcexp.errors import ConfigError, listed

_NDIM = re.compile(r"ndim\s*(<=|<|==)\s*(\d+)")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_SHOWN = 12
"""Names in a message."""


def without_decay(module: nn.Module, patterns: Sequence[str]) -> list[Any]:
    """The trained parameters, in two groups where patterns name some that are not decayed."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not patterns:
        return [p for _, p in trained]
    chosen = matching(module, patterns, "optimizer.no_decay")
    decayed = [p for name, p in trained if name not in chosen]
    undecayed = [p for name, p in trained if name in chosen]
    return [group for group in ({"params": decayed}, {"params": undecayed, "weight_decay": 0.0}) if group["params"]]


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Let parameters that patterns name be as they are. ConfigError of a pattern without any, or where none is left."""
    if not patterns:
        return
    chosen = matching(module, patterns, "model.freeze")
    for name, parameter in module.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"model.freeze={listed(patterns)} leaves nothing to train.\nFix: fewer patterns.")


def matching(module: nn.Module, patterns: Sequence[str], key: str) -> set[str]:
    """Names of parameters that any of the patterns matches; ConfigError names a pattern that matches none.

    `bias`: parameters called so; `norm`: of normalisation layers; `ndim<2`: with fewer axes; anything else: a dotted
    name, or the beginning of one, in which `*` stands for anything.
    """
    named = dict(module.named_parameters())
    chosen, idle = set(), []
    for pattern in patterns:
        found = set(_matching(module, named, pattern))
        chosen |= found
        idle += [] if found else [pattern]
    if idle:
        shown = [name.removeprefix("model.") for name in list(named)[:_SHOWN]]
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        raise ConfigError(
            f"{key}={listed(idle)}: no parameter matches.\n"
            f"There are {', '.join(shown)}{more}.\nFix: bias, norm, ndim<2, or a name of these with * for anything."
        )
    return chosen


def _matching(module: nn.Module, named: dict[str, Any], pattern: str) -> Iterator[str]:
    if (ndim := _NDIM.fullmatch(pattern.strip())) is not None:
        operator, limit = ndim[1], int(ndim[2])
        for name, parameter in named.items():
            n = parameter.ndim
            if n < limit if operator == "<" else n <= limit if operator == "<=" else n == limit:
                yield name
    elif pattern == "bias":
        yield from (name for name in named if name.rpartition(".")[2].startswith("bias"))
    elif pattern == "norm":
        for owner, layer in module.named_modules():
            if isinstance(layer, _NORMS) or type(layer).__name__.endswith("Norm"):
                yield from (f"{owner}.{name}" if owner else name for name, _ in layer.named_parameters(recurse=False))
    else:
        for name in named:
            own = name.removeprefix("model.")
            if any(fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*") for n in (name, own)):
                yield name
