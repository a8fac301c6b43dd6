"""The peer with more than one rank: `benchmarks.stock` as people start it on several devices, with `strategy="ddp"`.

`python -m benchmarks.stock_ddp hardware.devices=2 [OVERRIDE …]` is the first rank, and Lightning starts the others from
it by the same command line. Imports torch and Lightning at the top, as such scripts do.
"""

from __future__ import annotations

import hydra
import pytorch_lightning as pl
from hydra.core.config_store import ConfigStore
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig

from benchmarks.stock import Classifier, loader
from benchmarks.stopwatch import Stopwatch
from hpcexp.compose.sources import packaged_conf
from hpcexp.schema.keys import Config


def trainer(directory: str, devices: int, steps: int) -> pl.Trainer:
    """A Trainer with nothing that is not needed."""
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=steps,
        logger=False,
        callbacks=[Stopwatch()],
        default_root_dir=directory,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # not what it finds on this machine
    )


def run(config: DictConfig) -> None:
    """Train what was composed."""
    devices = config.hardware.devices
    model = hydra.utils.instantiate(config.model, in_shape=(1, 8, 8), num_classes=10)
    module = Classifier(model, hydra.utils.instantiate(config.task.loss), config.optimizer.lr)
    batches = loader(config.data.global_batch_size // devices)
    trainer(".", devices, config.trainer.max_steps).fit(module, batches)


def main() -> None:
    """A Hydra app around `run`."""
    ConfigStore.instance().store(name="schema", node=Config)
    hydra.main(version_base=None, config_path=str(packaged_conf()), config_name="config")(run)()


if __name__ == "__main__":
    main()
