"""What a network is called with, out of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """What a network is called with."""

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Each tensor by its name, or by `input_0`, `input_1` where it has none."""
        numbered = {f"input_{i}": value for i, value in enumerate(self.positional)}
        return {name: value for name, value in {**numbered, **self.named}.items() if isinstance(value, Tensor)}


def inputs_of(network: nn.Module, batch: Any, *, is_inputs: bool = False) -> Inputs:
    """What `forward` takes of a batch: names that it has, or as many parts as it takes. `is_inputs`: all of it."""
    if isinstance(batch, Mapping):
        if is_inputs:
            return Inputs((), dict(batch))
        taken = inspect.signature(network.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        named = {name: value for name, value in batch.items() if takes_any or name in taken}
        return Inputs((), named) if named else Inputs((batch,))
    if not isinstance(batch, tuple | list):
        return Inputs((batch,))
    if is_inputs:
        return Inputs(tuple(batch))
    taken = inspect.signature(network.forward).parameters
    needed = [
        p for p in taken.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return Inputs(tuple(batch[: max(1, len(needed))]))
