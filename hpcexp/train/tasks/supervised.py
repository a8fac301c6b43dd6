"""The Lightning module of supervised tasks: loss and metrics from the configuration, values read at intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hpcexp.data.augment import Augmentation, draws_of
from hpcexp.runs.journal import Journal
from hpcexp.train.optim.optimizers import clip_gradients
from hpcexp.train.runtime.fast_hooks import FastModule, signed
from hpcexp.train.tasks.loss_log import LossLog
from hpcexp.train.tasks.metrics import MetricAccumulator

Optimizers = Callable[[pl.LightningModule], Any]
"""Gives what `configure_optimizers` returns."""


class Supervised(FastModule):
    """Trains `model` on (inputs, targets) batches.

    Every step's `train/loss` (mean over ranks and accumulated batches) and `train/lr` go to the journal, read from the
    device once in `log_every` steps. `val/*` and `test/*` are exact means over all samples of all ranks, in the journal
    and in `trainer.callback_metrics`, where callbacks look for what they monitor.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        metrics: Sequence[str],
        optimizers: Optimizers,
        losses: LossLog,
        *,
        journal: Journal | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.metrics = model, loss, tuple(metrics)
        self.confusion: list[list[int]] | None = None
        """Rows are true classes, columns predicted ones; after a test of a classification."""
        self.loss_log = losses
        self._optimizers_of, self._journal = optimizers, journal
        self._augment, self._seed, self._num_classes = augment, seed, num_classes
        self._sums: MetricAccumulator | None = None
        self._confusion: Tensor | None = None

    def monitors(self) -> list[str]:
        """Names that `trainer.monitor` may have."""
        return ["train/loss", *(f"val/{name}" for name in ("loss", *self.metrics))]

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model says."""
        return self.model(inputs)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        """As the configuration says."""
        return self._optimizers_of(self)

    def on_train_start(self) -> None:
        """Count steps from where training (re)starts."""
        self.loss_log.begin(self.trainer.global_step, self.trainer.world_size)

    @signed
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        inputs, targets = batch
        if isinstance(self._augment, Augmentation):
            inputs = self._augment(inputs, self._draws(self._augment.num_draws, len(inputs)).to(inputs.device))
        elif self._augment is not None:
            inputs = self._augment(inputs)
        loss = self.loss(_aligned(self.model(inputs), targets), targets)
        self.loss_log.add(loss.detach())
        return loss

    def _draws(self, num_draws: int, batch: int) -> Tensor:
        """Random numbers `(num_draws, batch)` of the samples of this batch, which are some of the step's."""
        trainer, accumulate = self.trainer, self.trainer.accumulate_grad_batches
        draws = draws_of(self._seed, trainer.global_step, num_draws, trainer.world_size * accumulate * batch)
        first = (trainer.global_rank * accumulate + self.loss_log.num_micro) * batch
        return draws[:, first : first + batch]

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Also for fused optimizers under bf16-mixed."""
        clip_gradients(self, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; keeps its values, which stay on the device until the journal is written."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().optimizer_step(*args, **kwargs)
        self.loss_log.end_step(rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the next validation's `train/loss` and the summary still need."""
        losses = self.loss_log
        checkpoint["supervised"] = {"since_validation": list(losses.since_validation), "diverged": losses.diverged}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        if saved := checkpoint.get("supervised"):
            self.loss_log.since_validation, self.loss_log.diverged = list(saved["since_validation"]), saved["diverged"]

    def on_train_epoch_end(self) -> None:
        """Show the training loss to callbacks where no validation does, as there are no samples for one."""
        if (num_batches := self.trainer.num_val_batches) and not sum(num_batches):
            self._publish_training()

    def on_train_end(self) -> None:
        """Journal what is left."""
        self.loss_log.flush()

    def on_validation_epoch_start(self) -> None:
        """Begin a pass."""
        self._sums = MetricAccumulator(self.metrics, self.device)

    @signed
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the sums."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Journal the means and show them to callbacks."""
        self._publish_training()
        self._publish("val")

    def on_test_epoch_start(self) -> None:
        """Begin a pass, and count which class was taken for which."""
        self._sums = MetricAccumulator(self.metrics, self.device)
        if self._num_classes is not None:
            self._confusion = torch.zeros(self._num_classes**2, dtype=torch.int64, device=self.device)

    @signed
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the sums and the confusion matrix."""
        outputs = self._evaluate(batch)
        if self._confusion is not None and self._num_classes is not None:
            pairs = batch[1] * self._num_classes + outputs.argmax(-1)
            self._confusion += torch.bincount(pairs, minlength=self._num_classes**2)

    def on_test_epoch_end(self) -> None:
        """Journal the means; make the confusion matrix."""
        self._publish("test")
        if self._confusion is not None and self._num_classes is not None:
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(self._confusion)
            self.confusion = self._confusion.view(self._num_classes, self._num_classes).tolist()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """What the model says of a batch of inputs, with or without targets."""
        return self(batch[0] if isinstance(batch, list | tuple) else batch)  # type: ignore[no-any-return]

    def _evaluate(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        outputs = _aligned(self.model(inputs), targets)
        assert self._sums is not None
        self._sums.update(self.loss(outputs, targets), outputs, targets)
        return outputs

    def _publish_training(self) -> None:
        self.loss_log.flush()
        if losses := self.loss_log.since_validation:
            self.trainer.callback_metrics["train/loss"] = torch.tensor(sum(losses) / len(losses))
            self.loss_log.since_validation = []

    def _publish(self, split: str) -> None:
        assert self._sums is not None
        values = {f"{split}/{name}": value for name, value in self._sums.means().items()}
        self.trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        )
        if self._journal is not None and not self.trainer.sanity_checking:
            epoch = {"epoch": float(self.trainer.current_epoch)} if split == "val" else {}
            self._journal.append([(self.trainer.global_step, {**values, **epoch})])


def _aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    """`(B, 1)` outputs as `(B,)` where that is how the targets stand: a loss would broadcast them to `(B, B)`."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        return outputs.squeeze(-1)
    return outputs
