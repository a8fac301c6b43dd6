"""Resuming exactly where `last.ckpt` was written: what Lightning leaves out of a checkpoint, and puts back wrongly."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.types import _Stateful

from hpcexp.train.checkpointing.checkpoint_io import AtomicCheckpointIO
from hpcexp.train.checkpointing.compatibility import check_compatible
from hpcexp.train.checkpointing.trained_parts import (
    restore_averaging,
    restore_groups,
    restore_modes,
    trained_parts,
)
from hpcexp.train.data.adapters.streams import StreamLoader
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.seeds import random_state, seed_everything, seed_rank, set_random_state


class Resume(FastCallback):
    """Adds to a checkpoint the random numbers of every rank, the wish to stop and the newest metrics.

    It stands after all other callbacks, so that nothing draws random numbers between it and the first batch.
    """

    def __init__(self, best_step: Any, signature: str, seed: int, *, adopted: bool = False) -> None:
        self._best_step, self._signature, self._seed, self._adopted = best_step, signature, seed, adopted
        self._saved: dict[str, Any] | None = None
        self._optimizers: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have a checkpoint that is read looked at before Lightning takes what is in it."""
        if isinstance(io := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            io.check = partial(
                check_compatible,
                module=pl_module,
                world_size=trainer.world_size,
                signature=self._signature,
                adopted=self._adopted,
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """All ranks call it at the same step."""
        between_epochs = _is_between_epochs(trainer)
        checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)  # below, for each rank
        if between_epochs:
            _begin_next_epoch(checkpoint["loops"]["fit_loop"])
        checkpoint["hpcexp"] = {
            "signature": self._signature,
            "best": self._best_step(),
            "between_epochs": between_epochs,
            "random": of_all_ranks(random_state(pl_module.device), trainer.world_size),
            "strategy": of_all_ranks(_strategy_state(trainer), trainer.world_size),
            "loaders": of_all_ranks(_loader_states(trainer, between_epochs=between_epochs), trainer.world_size),
            "trained": trained_parts(trainer, pl_module),
            "should_stop": trainer.should_stop,
            "metrics": dict(trainer.callback_metrics),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A run that early stopping has ended is not trained on."""
        self._saved, self._optimizers = checkpoint["hpcexp"], checkpoint["optimizer_states"]
        trainer.should_stop = self._saved["should_stop"]
        of_ranks = self._saved["loaders"]
        if states := of_ranks[trainer.global_rank if len(of_ranks) == trainer.world_size else 0]:
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the optimizers be those whose states Lightning is about to load."""
        if self._saved is not None:
            restore_groups(trainer, pl_module, self._saved["trained"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore what must be restored last."""
        if self._saved is None:
            return
        loop = trainer.fit_loop
        # Lightning would not step a plateau scheduler at the end of the epoch in which it resumes.
        loop._restarting = False
        if self._saved["between_epochs"]:
            loop.epoch_loop.restarting = False
        restore_modes(pl_module, self._saved["trained"])
        restore_averaging(trainer, pl_module, self._optimizers)
        trainer.callback_metrics.update(self._saved["metrics"])
        self._restore_rank(trainer, pl_module)
        if not is_resumable(trainer):
            assert loop._data_fetcher is not None
            iter(loop._data_fetcher)  # a shuffling DataLoader draws its order from the random numbers just restored
        self._saved, self._optimizers = None, []

    def _restore_rank(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """What each rank has for itself. Ranks of another number begin theirs anew."""
        assert self._saved is not None
        of_ranks, rank = self._saved["random"], trainer.global_rank
        if len(of_ranks) != trainer.world_size:
            seed_everything((self._seed + trainer.global_step) % 2**32)
            seed_rank(self._seed + trainer.global_step, rank)
            return
        set_random_state(of_ranks[rank], module.device)
        if (state := self._saved["strategy"][rank]) and isinstance(trainer.strategy, _Stateful):
            trainer.strategy.load_state_dict(state)


def is_resumable(trainer: pl.Trainer) -> bool:
    """Whether the training data can resume inside an epoch."""
    loaders = trainer.fit_loop._combined_loader
    return loaders is not None and all(isinstance(loader, _Stateful) for loader in loaders.flattened)


def can_save(trainer: pl.Trainer) -> bool:
    """Whether training can resume exactly from the end of this batch.

    It cannot in the middle of an accumulation; before a validation that is due now, which would be left out; nor at
    the last batch of an epoch, whose end is still to come.
    """
    loop = trainer.fit_loop.epoch_loop
    assert trainer.fit_loop._data_fetcher is not None
    return (
        is_resumable(trainer)
        and not loop._should_accumulate()
        and not loop._is_training_done
        and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    )


def _loader_states(trainer: pl.Trainer, *, between_epochs: bool) -> list[Any]:
    """Where this rank's training data stands: after the batch that was trained on, not one that was fetched ahead."""
    fit = trainer.fit_loop
    if between_epochs or fit._combined_loader is None or not is_resumable(trainer):
        return []
    ahead = len(getattr(fit._data_fetcher, "batches", ()))
    return [
        loader.state_dict(ahead) if isinstance(loader, StreamLoader) else loader.state_dict()
        for loader in fit._combined_loader.flattened
    ]


def _strategy_state(trainer: pl.Trainer) -> dict[str, Any]:
    """What the strategy carries on from step to step on this rank."""
    return trainer.strategy.state_dict() if isinstance(trainer.strategy, _Stateful) else {}


def _is_between_epochs(trainer: pl.Trainer) -> bool:
    """At `on_train_epoch_start` (ready, not started) and `on_train_end`."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed == progress.started)


def _begin_next_epoch(loop: dict[str, Any]) -> None:
    """Let the loops' state be that before an epoch, instead of one inside which Lightning would look for its place."""
    for counts in (loop["epoch_progress"]["current"], loop["epoch_progress"]["total"]):
        counts["ready"] = counts["completed"] = counts["started"]


def of_all_ranks(state: Any, world_size: int) -> list[Any]:
    """On rank 0, which writes it."""
    if world_size == 1:
        return [state]
    states: list[Any] = [None] * world_size
    leads = torch.distributed.get_rank() == 0
    torch.distributed.gather_object(state, states if leads else None)
    return states
