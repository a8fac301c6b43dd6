"""The callback that takes a training process's memory. Imports Lightning: import it where it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytorch_lightning as pl

from benchmarks import MEMORY_FILE
from hpcexp.train.runtime.fast_hooks import FastCallback


class Memory(FastCallback):
    """Writes the bytes that no other process shares, as the last step leaves them."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look, before anything is freed."""
        taken = {"private": private_bytes(Path("/proc/self/smaps_rollup").read_text())}
        (Path(trainer.default_root_dir) / MEMORY_FILE).write_text(json.dumps(taken))


def private_bytes(rollup: str) -> int:
    """Of a process, from its `smaps_rollup`: what its end would free."""
    sizes = [line.split()[1] for line in rollup.splitlines() if line.startswith(("Private_Clean", "Private_Dirty"))]
    return sum(map(int, sizes)) * 1024
