"""Checkpoints that users' own callbacks write: below the run directory, and beside those of hpcexp."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from hpcexp.rundir import RunDir
from hpcexp.train.runtime.fast_hooks import FastCallback


class UserCheckpoints(FastCallback):
    """Gives every ModelCheckpoint a directory of this run's, before Lightning looks for one."""

    def __init__(self, run: RunDir, absolute: Collection[str]) -> None:
        """`absolute`: directories that the configuration names from the root on, which stay."""
        self._run, self._absolute = run, {str(Path(path).expanduser().resolve()) for path in absolute}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the callbacks that write checkpoints, which Lightning keeps last."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = str(self._directory(callback.dirpath))

    def _directory(self, asked: str | Path | None) -> Path:
        """`checkpoints/callbacks` unless another is asked for; a relative one is relative to the run directory."""
        base, ours = self._run.path.resolve(), self._run.checkpoints.resolve()
        if asked is None or Path(asked).resolve() == ours:
            return ours / "callbacks"
        path = Path(asked)
        if str(path.resolve()) in self._absolute or path.is_relative_to(base) or not path.is_relative_to(Path.cwd()):
            return path
        place = base / path.relative_to(Path.cwd())
        return ours / "callbacks" if place == ours else place
