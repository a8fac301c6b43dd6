"""The callback that takes wall-clock times inside a training process. Imports Lightning: import it where it is used."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.ends import ENDS_FILE
from hpcexp.train.runtime.fast_hooks import FastCallback


class Stopwatch(FastCallback):
    """Writes when each training step ended, on every rank."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin."""
        self._ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        self._ends.append(time.time())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave what was noted for `benchmarks.ends.read`."""
        file = Path(trainer.default_root_dir) / ENDS_FILE.format(rank=trainer.global_rank)
        file.write_text(json.dumps(self._ends))
