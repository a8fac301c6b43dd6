"""A module's weights as a whole, also where a strategy has spread them over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor


def whole_weights(trainer: pl.Trainer) -> Mapping[str, Tensor]:
    """The weights by name. Sharded ones are gathered in host memory on rank 0; all ranks must call it."""
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return strategy.lightning_module_state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if (share_buffers := getattr(strategy, "share_buffers", None)) is not None:
        share_buffers()
    assert strategy.lightning_module is not None
    weights: dict[str, Any] = get_model_state_dict(
        strategy.lightning_module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return weights


def load_whole_weights(trainer: pl.Trainer, weights: dict[str, Any]) -> None:
    """Load weights by name into the module; where it is sharded each rank loads its part, and all must call it."""
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        trainer.lightning_module.load_state_dict(weights)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_model_state_dict(trainer.lightning_module, weights, options=options)


def placed_as(value: Tensor, like: Any) -> Tensor:
    """`value`, sharded as the tensor `like` is."""
    if not hasattr(like, "device_mesh") or hasattr(value, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole, and takes its part of it.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
