"""The Lightning module around a model and its task: every step's loss, exact evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hpcexp.data.augment import Augmentation, draws_of
from hpcexp.data_spec import DataSpec
from hpcexp.errors import ConfigError
from hpcexp.runs.journal import Journal
from hpcexp.train.optim.optimizers import clip_gradients
from hpcexp.train.runtime.fast_hooks import FastModule, signed
from hpcexp.train.tasks.evaluation import Evaluation
from hpcexp.train.tasks.loss_log import LossLog
from hpcexp.train.tasks.task import Task

Optimizers = Callable[[pl.LightningModule], Any]
"""Gives what `configure_optimizers` returns."""


class TaskModule(FastModule):
    """Trains `model` for a task.

    Every step's `train/loss` (mean over ranks and accumulated batches) and `train/lr` go to the journal, read from the
    device once in `log_every` steps. `val/*` and `test/*` are exact over all samples of all ranks, in the journal and
    in `trainer.callback_metrics`, where callbacks look for what they monitor. With several loaders, `val/NAME` is
    of the first, and `val/LOADER/NAME` of each.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizers: Optimizers,
        losses: LossLog,
        *,
        data: DataSpec | None = None,
        journal: Journal | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.task = model, task
        self._modules_of_task = dict(task.modules(data))
        self.of_task = nn.ModuleList(self._modules_of_task.values())
        self.loss_log = losses
        self.tables: dict[str, Tensor] = {}
        """What a test has counted: a confusion matrix."""
        self._optimizers_of, self._journal, self._data = optimizers, journal, data
        self._augment, self._seed = augment, seed
        self._evaluations: list[Evaluation] = []
        """Of each validation or test loader."""

    def monitors(self) -> list[str]:
        """Names that `trainer.monitor` may have."""
        return ["train/loss", *(f"val/{name}" for name in self.task.metrics())]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the model says."""
        return self.model(*inputs, **named)

    def configure_optimizers(self) -> Any:
        """As the configuration says."""
        return self._optimizers_of(self)

    def on_train_start(self) -> None:
        """Count steps from where training (re)starts."""
        self.loss_log.begin(self.trainer.global_step, self.trainer.world_size)

    @signed
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if self._augment is not None:
            batch = self._augmented(batch)
        loss = self.task.training_loss(self.model, batch)
        self.loss_log.add(loss.detach())
        return loss

    def _augmented(self, batch: Any) -> Any:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            raise ConfigError(
                "data.augment changes batches of two tensors, inputs and targets, and these are others.\n"
                "Fix: data.augment=null, and change the inputs in the data set or the model."
            )
        inputs, targets = batch
        if isinstance(self._augment, Augmentation):
            draws = self._draws(self._augment.num_draws, len(inputs))
            return self._augment(inputs, draws.to(inputs.device)), targets
        assert self._augment is not None
        return self._augment(inputs), targets

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
        """Resume from it."""
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
        self._evaluations = [self._begun(loader) for loader, _ in enumerate(loader_names(self.trainer))]

    @signed
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch."""
        self._evaluations[dataloader_idx].update(self.task.evaluate(self.model, batch))

    def on_validation_epoch_end(self) -> None:
        """Journal the values and show them to callbacks."""
        self._publish_training()
        self._publish("val")

    def on_test_epoch_start(self) -> None:
        """Begin a pass, with the tables of the task."""
        tables, loaders = self.task.tables(self._data), range(len(loader_names(self.trainer)))
        self._evaluations = [self._begun(loader, tables=tables) for loader in loaders]

    @signed
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch."""
        self._evaluations[dataloader_idx].update(self.task.test(self.model, batch))

    def on_test_epoch_end(self) -> None:
        """Journal the values; keep the tables of the first loader."""
        self._publish("test")
        tables = [evaluation.tables() for evaluation in self._evaluations]
        self.tables = tables[0] if tables else {}

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The task's predictions of a batch, with or without targets."""
        return self.task.predict(self.model, self.task.inputs(batch))

    def _begun(self, loader: int, tables: Mapping[str, tuple[int, ...]] | None = None) -> Evaluation:
        names = self.task.metrics()
        aggregates: dict[str, Any] = {name: module for name, module in self._modules_of_task.items() if name in names}
        aggregates.pop("loss", None)
        if loader:
            aggregates = {name: deepcopy(metric) for name, metric in aggregates.items()}
        return Evaluation(names, self.device, aggregates=aggregates, tables=tables)

    def _publish_training(self) -> None:
        self.loss_log.flush()
        if losses := self.loss_log.since_validation:
            self.trainer.callback_metrics["train/loss"] = torch.tensor(sum(losses) / len(losses))
            self.loss_log.since_validation = []

    def _publish(self, split: str) -> None:
        values: dict[str, float] = {}
        for loader, evaluation in zip(loader_names(self.trainer), self._evaluations, strict=True):
            found = evaluation.values()
            values |= {f"{split}/{loader}/{name}": value for name, value in found.items()} if loader else {}
            values = {**{f"{split}/{name}": value for name, value in found.items()}, **values}
        self.trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        )
        if self._journal is not None and not self.trainer.sanity_checking:
            epoch = {"epoch": float(self.trainer.current_epoch)} if split == "val" else {}
            self._journal.append([(self.trainer.global_step, {**values, **epoch})])


def network_of(module: pl.LightningModule) -> nn.Module:
    """The model itself: a user's module, or what a task trains."""
    return module.model if isinstance(module, TaskModule) else module


def loader_names(trainer: pl.Trainer) -> list[str]:
    """Names of the loaders of the running validation or test, in their order; a single one has none."""
    loop = trainer.fit_loop.epoch_loop.val_loop if trainer.state.fn == "fit" else trainer.validate_loop
    loop = trainer.test_loop if trainer.testing else loop
    loaders = loop._combined_loader
    if loaders is None or len(loaders.flattened) == 1:
        return [""]
    given = loaders.iterables
    return list(map(str, given)) if isinstance(given, Mapping) else list(map(str, range(len(loaders.flattened))))
