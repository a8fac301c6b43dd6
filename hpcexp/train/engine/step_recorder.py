"""The losses and rates of every step of any module, and how many steps there were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hpcexp.train.checkpointing.exact_resume import of_all_ranks
from hpcexp.train.engine.epoch_values import epoch_values, restore_metrics
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.steps import set_steps_done, steps_done
from hpcexp.train.tasks.loss_log import LossLog, Value

LOSS = "train/loss"


class StepRecorder(FastCallback):
    """Gives a `LossLog` the losses and rates of a module that does not do so itself; counts steps across attempts.

    `train/loss` is the mean of what `training_step` returns over ranks and accumulated batches, `train/lr` the rate of
    the optimizer's first group at its step; of several optimizers it is `train/lr/0`, `train/lr/1`, ….
    """

    def __init__(self, losses: LossLog, *, fills: bool) -> None:
        """`fills`: whether to give `losses` anything; hpcexp's own module does it itself."""
        self._losses, self.fills = losses, fills
        self._rates: dict[str, float] = {}
        self._resumed: dict[str, Any] | None = None
        self._hooks: list[RemovableHandle] = []
        self._has_loss = self._is_loss_logged = False
        """Whether steps have had a loss, and whether the module logs one of that name for each step itself."""
        self._is_renaming_told = False
        self.resume_logged: Callable[[dict[str, Any]], None] = lambda logged: None
        """Takes what an interrupted epoch has accumulated of logged values."""
        if not fills:
            self.on_train_batch_end = None  # type: ignore[method-assign,assignment]

    def end(self, values: Mapping[str, Value]) -> None:
        """A step is done that has logged `values`."""
        if self.fills:
            rates, self._rates = self._rates, {}
            self._is_loss_logged |= LOSS in values
            self._losses.end_step(rates, values)
        elif values:
            self._losses.add_values(values)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where training starts or resumes."""
        saved, self._resumed = self._resumed or {"steps": trainer.global_step}, None
        set_steps_done(trainer, saved["steps"])
        if self.fills:
            self._losses.begin(saved["steps"], trainer.world_size, pl_module.device)
            self._losses.since_validation = list(saved.get("since_validation", ()))
            self._losses.diverged = saved.get("diverged", False)
            self._restore_epoch(trainer, pl_module, saved.get("epoch", ()))
            names = _rate_names(len(trainer.optimizers))
            self._hooks = [
                optimizer.register_step_post_hook(partial(self._note_rate, name))
                for name, optimizer in zip(names, trainer.optimizers, strict=True)
            ]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        """Note the loss, which Lightning has divided by the batches that are accumulated."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, Tensor) and loss.numel() == 1:
            share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._has_loss, loss = True, loss.detach().reshape(())
            self._losses.add(loss * share if share > 1 else loss.clone())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show callbacks the mean training loss since the last validation."""
        if self.fills and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._publish(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also where nothing is validated."""
        if self.fills and not sum(trainer.num_val_batches or [0]):
            self._publish(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Journal what is left."""
        self._losses.flush()
        for hook in self._hooks:
            hook.remove()

    def unmixed(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics of an epoch, with another name for a mean that the module logs as `train/loss`: steps have that."""
        if LOSS not in metrics or not self._has_loss or self._is_loss_logged:
            return metrics
        if not self._is_renaming_told:
            self._is_renaming_told = True
            print(f"{LOSS} is the loss of every step; its mean over an epoch is recorded as {LOSS}_epoch.", flush=True)
        return {f"{LOSS}_epoch" if name == LOSS else name: value for name, value in metrics.items()}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The steps done, and what the next validation and the summary still need."""
        losses = self._losses
        checkpoint["steps"] = {
            "steps": steps_done(trainer),
            "since_validation": list(losses.since_validation),
            "diverged": losses.diverged,
        }
        if self.fills:
            mine = epoch_values(trainer, pl_module)
            checkpoint["steps"]["epoch"] = of_all_ranks(mine, trainer.world_size)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume with them."""
        self._resumed = checkpoint["steps"]

    def _restore_epoch(self, trainer: pl.Trainer, module: pl.LightningModule, of_ranks: Sequence[Any]) -> None:
        """What the epoch had accumulated. Ranks of another number begin theirs anew."""
        if len(of_ranks) == trainer.world_size:
            mine = of_ranks[trainer.global_rank]
            restore_metrics(module, mine["metrics"])
            self.resume_logged(mine["logged"])

    def _note_rate(self, name: str, optimizer: Optimizer, *_: Any) -> None:
        """After the optimizer's step, and before a schedule changes the rate."""
        self._rates[name] = float(optimizer.param_groups[0]["lr"])

    def _publish(self, trainer: pl.Trainer) -> None:
        self._losses.flush()
        losses, self._losses.since_validation = self._losses.since_validation, []
        if losses and not self._is_loss_logged:
            trainer.callback_metrics[LOSS] = torch.tensor(sum(losses) / len(losses))


def _rate_names(num_optimizers: int) -> list[str]:
    return ["train/lr"] if num_optimizers == 1 else [f"train/lr/{i}" for i in range(num_optimizers)]
