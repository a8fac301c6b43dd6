"""Fully sharded data parallel: weights, gradients and optimizer state are spread over the ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from hpcexp.errors import ConfigError
from hpcexp.train.checkpointing.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from hpcexp.train.checkpointing.shards import scattered, write_shards
from hpcexp.train.runtime.weights import placed_as

_CONTAINERS = (nn.Sequential, nn.ModuleList)


class Fsdp(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all ranks, on GPUs and CPUs, with checkpoints in hpcexp's own form.

    A module without a `configure_model` of its own is sharded by `blocks` of at least `min_params` parameters. Each is
    a unit, whose weights are gathered together while it computes; the rest of the model is one more.
    `reshard_after_forward` frees them between forward and backward, which takes another gathering. Buffers, as of
    batch norm, are on every rank; those of rank 0 are evaluated and kept, as under DDP.
    """

    def __init__(
        self,
        min_params: int = 100_000,
        reshard_after_forward: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend)
        self.min_params, self.reshard_after_forward = min_params, reshard_after_forward

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states come as Lightning expects them."""
        return True

    def setup_environment(self) -> None:
        """All ranks share one copy of the model."""
        self._data_parallel_size = self.world_size
        super().setup_environment()

    def on_validation_start(self) -> None:
        """Evaluate the same model on all ranks."""
        self.share_buffers()

    def on_test_start(self) -> None:
        """Evaluate the same model on all ranks."""
        self.share_buffers()

    def share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            torch.distributed.broadcast(buffer, src=0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shards of the weights on this rank, and the buffers."""
        self.share_buffers()
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put this rank's shards in."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Shards of it on this rank."""
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put this rank's shards in."""
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the shards of all ranks, then the rest with their names on rank 0. All ranks must call it."""
        rest = write_shards(checkpoint, Path(filepath).parent, checkpoint["steps"]["steps"])
        Strategy.save_checkpoint(self, rest, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Shards for this rank of a checkpoint of any number of ranks, or all of one that is not sharded."""
        path = Path(checkpoint_path)
        checkpoint = scattered(read_checkpoint(path, whole=False), path.parent, self.device_mesh)
        if "beside" not in checkpoint:
            self._scatter(checkpoint)
        io = self.checkpoint_io
        if isinstance(io, AtomicCheckpointIO) and io.check is not None:
            io.check(checkpoint, path)
        return checkpoint

    def _scatter(self, checkpoint: dict[str, Any]) -> None:
        """Shard whole weights and optimizer states, as a run on one device has written them."""
        assert self.lightning_module is not None
        weights, live = checkpoint["state_dict"], self.lightning_module.state_dict()
        checkpoint["state_dict"] = {k: placed_as(v, live[k]) if k in live else v for k, v in weights.items()}
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in saved["param_groups"] for n in group["params"]]
            for number, parameter in zip(numbers, parameters, strict=True):
                state = saved["state"].get(number, {})
                state.update({k: placed_as(v, parameter) for k, v in state.items() if _is_of(v, parameter)})


def shard_when_configured(module: pl.LightningModule, network: nn.Module, precision: str) -> None:
    """Have `network`, all of the module that is trained, sharded once where Lightning configures the module.

    ConfigError where the module has trained weights outside it.
    """
    inside = set(network.parameters())
    if any(p.requires_grad for p in module.parameters() if p not in inside):
        raise ConfigError(
            "strategy=fsdp: task.loss has weights that are trained, which would differ from rank to rank.\n"
            "Fix: put them into the model; or strategy=ddp."
        )
    module.configure_model = partial(_shard, module, network, precision)  # type: ignore[method-assign]


def _shard(module: pl.LightningModule, network: nn.Module, precision: str) -> None:
    strategy: Any = module.trainer.strategy
    if not isinstance(strategy, Fsdp) or isinstance(network, FSDPModule):
        return
    mesh = strategy.device_mesh["data_parallel"]
    for unit in (*blocks(network, strategy.min_params), network):
        fully_shard(
            unit,
            mesh=mesh,
            mp_policy=_policy(unit, precision),
            reshard_after_forward=strategy.reshard_after_forward,
        )


def blocks(model: nn.Module, min_params: int) -> Iterator[nn.Module]:
    """The outermost modules that stand in a `Sequential` or `ModuleList`, are neither, and are large enough.

    So a transformer's layers, and not the layers of the networks in them.
    """
    for child in model.children():
        is_part = isinstance(model, _CONTAINERS) and not isinstance(child, _CONTAINERS)
        if is_part and sum(p.numel() for p in child.parameters()) >= min_params:
            yield child
        else:
            yield from blocks(child, min_params)


def check_shards_itself(module: pl.LightningModule) -> None:
    """ConfigError where a user's module does not say how it is sharded."""
    if type(module).configure_model is pl.LightningModule.configure_model:
        raise ConfigError(
            f"strategy=fsdp: {type(module).__name__} does not say how it is sharded, and hpcexp cannot know which "
            "of its modules are called as a whole.\n"
            "Fix: give it a configure_model() that calls torch.distributed.fsdp.fully_shard on its parts with "
            'mesh=self.device_mesh["data_parallel"]; or strategy=ddp.'
        )


def _is_of(value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state has an entry for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _policy(unit: nn.Module, precision: str) -> MixedPrecisionPolicy:
    """Weights are gathered in the type that is computed with; gradients are summed in float32.

    Batch norm wants its weights in float32, as its running means are.
    """
    has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in unit.modules())
    if precision != "bf16-mixed" or has_batch_norm:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
