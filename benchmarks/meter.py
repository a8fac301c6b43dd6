"""The callback that takes CPU times inside a training process. Imports Lightning: import it where it is used."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks import METER_FILE
from hpcexp.train.runtime.fast_hooks import FastCallback


class Meter(FastCallback):
    """Writes `until_first_step_s`, since the process began, and `step_s`, one whole `fit` divided by its steps."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The beginning of `fit`."""
        if stage == "fit":
            self._began = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the first step, then be called no more: Lightning passes over a hook that is None."""
        self._first = time.process_time()
        self.on_train_batch_end = None  # type: ignore[method-assign,assignment]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After validations, checkpoints and the last write of every logger."""
        step_s = (time.process_time() - self._began) / trainer.global_step
        taken = {"until_first_step_s": self._first, "step_s": step_s}
        (Path(trainer.default_root_dir) / METER_FILE).write_text(json.dumps(taken))
