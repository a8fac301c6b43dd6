"""What holds the ranks of a job together: nothing, DDP with its options, or the user's own strategy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from hpcexp.errors import ConfigError
from hpcexp.plan import Plan
from hpcexp.schema.keys import Strategy
from hpcexp.targets.instantiate import fill, instantiate

_MEMORY = ("error_dict", "p_memory_dict", "q_memory_dict")
_COUNTS = ("iter", "total_numel_before_compression", "total_numel_after_compression", "next_stats_report")


def make_strategy(plan: Plan) -> Any:
    """Lightning's single device, DDP, or the strategy that the configuration names."""
    strategy = plan.settings.strategy
    if plan.topology.world_size == 1 and plan.topology.strategy != "custom":
        return "auto"
    if not strategy.has_target:
        return Ddp(process_group_backend=plan.topology.backend)
    return instantiate(fill(strategy.node, "strategy", process_group_backend=plan.topology.backend), path="strategy")


class Ddp(DDPStrategy):
    """Lightning's DDP with the same buckets in every attempt, and with compression also on the CPU."""

    def __init__(
        self,
        bucket_cap_mb: float = Strategy.bucket_cap_mb,
        find_unused_parameters: bool = Strategy.find_unused_parameters,
        gradient_as_bucket_view: bool = Strategy.gradient_as_bucket_view,
        static_graph: bool = Strategy.static_graph,
        compression: str = Strategy.compression,
        powersgd_rank: int = Strategy.powersgd_rank,
        powersgd_start: int = Strategy.powersgd_start,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            bucket_cap_mb=bucket_cap_mb,
            find_unused_parameters=find_unused_parameters,
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
        )
        self._ddp_comm_hook, self._ddp_comm_state = _hook(compression, powersgd_rank, powersgd_start)
        self.is_following = False
        """Whether parts of the model may be frozen or unfrozen during training."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch, with the gradients of all that is trained now exchanged."""
        if self.is_following:
            self._follow()
        return super().training_step(*args, **kwargs)

    def on_validation_start(self) -> None:
        """Exchange buffers once. DDP does it before every batch, and one rank may have more batches than another."""
        if isinstance(self.model, DistributedDataParallel) and self.model.will_sync_module_buffers():  # type: ignore[no-untyped-call]
            self.model._sync_buffers()  # type: ignore[no-untyped-call]

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch, without DDP, which has nothing to do where there are no gradients."""
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)

    def _follow(self) -> None:
        """Make DDP anew where it does not exchange the gradients of just those parameters that are trained now."""
        module, joined = self.lightning_module, self.model
        if module is None or not isinstance(joined, FixedBuckets):
            return
        trained = frozenset(id(parameter) for parameter in module.parameters() if parameter.requires_grad)
        if trained == joined.exchanged or not trained:
            return
        if self._ddp_comm_state is not None:
            raise ConfigError(
                "strategy.compression=powersgd remembers the parameters that it began with, and others are trained now."
                "\nFix: strategy.compression=none, or freeze nothing during training."
            )
        self.model = None
        joined.reducer, joined.logger = None, None  # type: ignore[assignment]  # its hooks on parameters go with it
        del joined
        self.model = self._setup_model(module)
        self._register_ddp_hooks()

    def state_dict(self) -> dict[str, Any]:
        """What this rank's compression carries on from step to step, as plain data; empty without any."""
        state: Any = self._ddp_comm_state
        if state is None:
            return {}
        name, keys, *rest = state.rng.get_state()
        memory = {slot: dict(getattr(state, slot)) for slot in _MEMORY}
        counts = {slot: getattr(state, slot) for slot in _COUNTS}
        return {**memory, **counts, "rng": [name, keys.tolist(), *rest]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Resume compressing where `state_dict` was taken."""
        state: Any = self._ddp_comm_state
        for slot in _MEMORY:
            setattr(state, slot, {bucket: value.to(self.root_device) for bucket, value in saved[slot].items()})
        for slot in _COUNTS:
            setattr(state, slot, saved[slot])
        state.rng.set_state(tuple(saved["rng"]))

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        device_ids = self.determine_ddp_device_ids()
        # As Lightning does: on a stream of its own, gradients' accumulation can be captured in a CUDA graph.
        side: Any = torch.cuda.Stream() if device_ids else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side) if device_ids else contextlib.nullcontext():
            return FixedBuckets(model, device_ids=device_ids, **self._ddp_kwargs)

    def _register_ddp_hooks(self) -> None:
        """Lightning's passes over hooks on the CPU without a word."""
        if self._ddp_comm_hook is not None:
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)


class FixedBuckets(DistributedDataParallel):
    """DDP whose buckets are from the first step on what they stay.

    DDP sends the first step's gradients in one bucket and then makes others, in the order in which gradients came. A
    run that is continued would thus add up its first step's gradients in another order than an uninterrupted one, and
    compression would find other buckets than those that it remembers. Here they are made before the first step, in the
    order in which gradients come where modules are used in the order of their definition: the same as DDP's.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        self._is_fixed = bool(options.get("static_graph")) or not options.get("find_unused_parameters")
        super().__init__(module, **options)
        if self._is_fixed:
            self.reducer._push_all_rebuilt_params()
            self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        parameters, are_sparse = super()._build_params_for_reducer()  # type: ignore[no-untyped-call]
        self.exchanged = frozenset(map(id, parameters))
        if self._is_fixed:
            # New buckets take the parameters in this order; the last ones have their gradients first.
            return parameters[::-1], are_sparse[::-1]
        return parameters, are_sparse


def _hook(compression: str, rank: int, start: int) -> tuple[Callable[..., Any] | None, Any]:
    """DDP's communication hook and what it carries on from step to step."""
    if compression == "powersgd":
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd

        return powersgd.powerSGD_hook, powersgd.PowerSGDState(
            None, matrix_approximation_rank=rank, start_powerSGD_iter=start
        )
    hooks: dict[str, Callable[..., Any] | None] = {
        "none": None,
        "fp16": default_hooks.fp16_compress_hook,
        "bf16": default_hooks.bf16_compress_hook,
    }
    return hooks[compression], None
