"""The peer: the same experiment as people write it with Lightning and Hydra.

`python -m benchmarks.stock [OVERRIDE …]` composes hpcexp's own conf/, trains on the same arrays, and leaves out what
costs time without being needed: model summary, progress bar, checkpoints. Imports torch and Lightning at the top, as
such scripts do.
"""

from __future__ import annotations

from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.meter import Meter
from hpcexp.compose.sources import packaged_conf
from hpcexp.data.digits import Digits
from hpcexp.schema.keys import Config


class Classifier(pl.LightningModule):
    """A model, its loss and Adam."""

    def __init__(self, model: nn.Module, loss: nn.Module, lr: float, *, logs: bool = False) -> None:
        super().__init__()
        self.model, self.loss, self.lr, self.logs = model, loss, lr, logs

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, logged on request."""
        loss: Tensor = self.loss(self.model(batch[0]), batch[1])
        if self.logs:
            self.log("train/loss", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def loader(batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """The training digits, shuffled."""
    data = Digits().load("train")
    return DataLoader(TensorDataset(data.inputs, data.targets), batch_size, shuffle=True, drop_last=True)


def trainer(directory: str, epochs: int, steps: int = -1, logger: Any = False) -> pl.Trainer:
    """A Trainer with nothing that is not needed."""
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        max_steps=steps,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[Meter()],
        default_root_dir=directory,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # not what it finds on this machine
    )


def run(config: DictConfig) -> None:
    """Train what was composed."""
    model = hydra.utils.instantiate(config.model, in_shape=(1, 8, 8), num_classes=10)
    loss = hydra.utils.instantiate(config.task.loss)
    limits = config.trainer
    trainer(".", limits.max_epochs, limits.max_steps or -1).fit(
        Classifier(model, loss, config.optimizer.lr), loader(config.data.global_batch_size)
    )


def main() -> None:
    """A Hydra app around `run`."""
    ConfigStore.instance().store(name="schema", node=Config)
    hydra.main(version_base=None, config_path=str(packaged_conf()), config_name="config")(run)()


if __name__ == "__main__":
    main()
