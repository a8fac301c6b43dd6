"""The peer of a sweep: a script as people write it with Lightning, Hydra and MLflow, and run with `-m`.

`python -m benchmarks.stock_sweep -m seed=1,2 [hydra/launcher=joblib]` trains the digits MLP, validates each epoch,
keeps the best and the last checkpoint, tests with the best, and logs to MLflow what Lightning logs by default: the
metrics of every validation, and of every fiftieth step. It leaves out what costs time without being needed: model
summary and progress bar. Its configuration is one dataclass, which Hydra composes faster than groups.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import MISSING, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks import TIMES_FILE
from benchmarks.memory import Memory
from hpcexp.data.digits import Digits
from hpcexp.data.source import Split
from hpcexp.models.mlp import MLP


@dataclass
class Experiment:
    """The choices, with the values of hpcexp's `digits_mlp`."""

    uri: str = MISSING
    """Of MLflow's store."""
    seed: int = 1
    epochs: int = 3
    batch_size: int = 64
    hidden: tuple[int, ...] = (256, 256)
    lr: float = 0.003
    weight_decay: float = 0.01


class Classifier(pl.LightningModule):
    """A model, its loss, its accuracy and AdamW with a cosine."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model, self.lr, self.weight_decay = model, lr, weight_decay
        self.loss = nn.CrossEntropyLoss()
        self.val_acc, self.test_acc = (MulticlassAccuracy(10, average="micro") for _ in range(2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss: Tensor = self.loss(self.model(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        self._evaluate("val", self.val_acc, batch)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        self._evaluate("test", self.test_acc, batch)

    def configure_optimizers(self) -> Any:
        """As in the examples of Lightning's documentation."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluate(self, phase: str, accuracy: MulticlassAccuracy, batch: list[Tensor]) -> None:
        outputs = self.model(batch[0])
        accuracy(outputs, batch[1])
        self.log(f"{phase}/loss", self.loss(outputs, batch[1]))
        self.log(f"{phase}/acc", accuracy)


def train(experiment: Experiment, directory: Path) -> None:
    """Do all of it, and leave when it began and ended."""
    began = time.time()
    pl.seed_everything(experiment.seed, verbose=False)
    model = MLP((1, 8, 8), 10, hidden=experiment.hidden)
    logger = MLFlowLogger("digits_mlp", tracking_uri=experiment.uri)
    logger.log_hyperparams(vars(experiment))
    best = ModelCheckpoint(directory / "checkpoints", monitor="val/acc", mode="max", save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=experiment.epochs,
        logger=logger,
        callbacks=[best, LearningRateMonitor(), Memory()],
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # not what it finds on this machine
    )
    module = Classifier(model, experiment.lr, experiment.weight_decay)
    trainer.fit(module, _loader("train", experiment), _loader("val", experiment))
    trainer.test(module, _loader("test", experiment), ckpt_path="best", verbose=False)
    logger.finalize("success")
    (directory / TIMES_FILE).write_text(json.dumps({"began": began, "ended": time.time()}))


def _loader(split: Split, experiment: Experiment) -> DataLoader[tuple[Tensor, ...]]:
    data, is_train = Digits().load(split), split == "train"
    return DataLoader(
        TensorDataset(data.inputs, data.targets), experiment.batch_size, shuffle=is_train, drop_last=is_train
    )


def run(config: Any) -> None:
    """Train what was composed."""
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    train(experiment, Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    """A Hydra app around `run`."""
    ConfigStore.instance().store(name="experiment", node=Experiment)
    hydra.main(version_base=None, config_path=None, config_name="experiment")(run)()


if __name__ == "__main__":
    main()
