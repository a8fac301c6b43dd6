"""A checkpoint that is made before the first step and not written: what could not be saved is found there."""

from __future__ import annotations

import contextlib
import sys

import pytorch_lightning as pl

from hpcexp.errors import ConfigError, HpcexpError
from hpcexp.train.checkpointing.hyperparameters import as_data, left_out
from hpcexp.train.checkpointing.plain_data import plain
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.seeds import random_state, set_random_state


class TrialSave(FastCallback):
    """Asks everybody for what a checkpoint would hold, when training starts; ConfigError where that is no plain data.

    Random numbers are afterwards what they were before.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make it on all ranks, as those do that save."""
        if trainer.is_global_zero:
            _name_left_out(left_out(pl_module, getattr(trainer, "datamodule", None)))
        before = random_state(pl_module.device)
        try:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            plain(as_data(checkpoint), tensor=lambda tensor: tensor)
        except HpcexpError as e:
            raise ConfigError(str(e)) from e
        finally:
            set_random_state(before, pl_module.device)


def _name_left_out(names: list[str]) -> None:
    if names:
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(
                f"WARNING: save_hyperparameters() got what is no plain data: {', '.join(names)}. "
                "Checkpoints leave it out; plan.yaml has the whole configuration.",
                file=sys.stderr,
                flush=True,
            )
