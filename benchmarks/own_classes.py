"""A user's LightningModule and data module, for `benchmarks.own_module`. Imports Lightning at the top, as theirs do."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.stock import loader
from hpcexp.data.digits import Digits

BATCH_SIZE = 64


class Logging(pl.LightningModule):
    """A model, its loss and Adam; logs `logs` values at every step, and the validation loss."""

    def __init__(self, model: nn.Module, loss: nn.Module, lr: float, logs: int) -> None:
        super().__init__()
        self.model, self.loss, self.lr = model, loss, lr
        self.names = [f"train/own{i}" for i in range(logs)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss: Tensor = self.loss(self.model(batch[0]), batch[1])
        for name in self.names:
            self.log(name, loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss of one batch."""
        self.log("val/loss", self.loss(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Silent(Logging):
    """The same with nothing logged."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Compute the loss of one batch."""
        self.loss(self.model(batch[0]), batch[1])


class Data(pl.LightningDataModule):
    """The digits through plain DataLoaders."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled."""
        return loader(BATCH_SIZE)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """All at once."""
        data = Digits().load("val")
        return DataLoader(TensorDataset(data.inputs, data.targets), len(data.inputs))
