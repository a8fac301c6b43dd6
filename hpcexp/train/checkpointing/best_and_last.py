"""When best and last weights are saved, and in which order their files are written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from hpcexp.errors import HpcexpError, RunError
from hpcexp.files.atomic import fsync
from hpcexp.media import active
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.best_weights import BestWeights
from hpcexp.train.checkpointing.checkpoint_io import AtomicCheckpointIO, write_checkpoint
from hpcexp.train.checkpointing.monitor import agreed
from hpcexp.train.checkpointing.plain_data import plain
from hpcexp.train.checkpointing.retention import drop_unreferenced, drop_unreferenced_shards
from hpcexp.train.checkpointing.save_errors import SaveErrors
from hpcexp.train.checkpointing.staging import Staging
from hpcexp.train.checkpointing.writer import Job, Writer
from hpcexp.train.optim.ema import Ema
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.steps import steps_done
from hpcexp.train.tasks.loss_log import LossLog


class Checkpointing(FastCallback):
    """Keeps `best.ckpt`, `last.ckpt`, and as `previous.ckpt` the `last` before that.

    `save` writes the best weights if they are new, and the state of training; `is_due` says when `checkpoint.every_s`
    or `every_steps` has passed. The end of training and of every `checkpoint.every_epochs` saves by itself, the latter
    when the next epoch starts: only then is everything done that belongs to the epoch. A crash writes only the best,
    as training cannot resume from inside a step.

    With `checkpoint.async_write` a save only copies to host memory, and a thread writes. The order of its jobs matters:
    the journal, the best weights, the `last` that refers to both; then files go that nothing refers to any more. A
    save that comes while another is being written waits for it; one that is due by time is late instead. The end of
    training, of whatever kind, waits until everything is on the disk.
    """

    def __init__(self, plan: Plan, run: RunDir, losses: LossLog, *, write: bool) -> None:
        checkpoint = plan.settings.checkpoint
        self.every_s, self.every_epochs = checkpoint.every_s, checkpoint.every_epochs
        self.every_steps = checkpoint.every_steps
        self.is_wanted = False
        """Whether to save when the next epoch starts."""
        self._run, self._losses, self._write, self._background = run, losses, write, checkpoint.async_write
        self._writer, self._taken, self._staging = Writer(), list[Job](), Staging()
        self.best = BestWeights(plan, run, self._writer, write=write)
        self.errors = SaveErrors(self._writer, on_error=checkpoint.on_error)
        self._continues = checkpoint.on_error == "continue"
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._validated_step: int | None = None
        self._is_watching = False
        """Whether a hook of the user's or of Lightning's may change weights around a validation."""

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint."""
        if self.every_steps is not None and step - self._saved_step >= self.every_steps:
            return True
        is_time = self.every_s is not None and time.monotonic() - self._saved_at >= self.every_s
        return is_time and not self._writer.is_busy

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have Lightning hand `last` over instead of writing it."""
        if isinstance(io := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            io.take = self._take
            io.warn = self.errors.warn if self._continues else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count to the first checkpoint from here."""
        self._is_watching = any(map(_may_change_weights, [*trainer.callbacks, pl_module]))  # type: ignore[attr-defined]
        self._saved_at, self._saved_step = time.monotonic(), steps_done(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights that were validated, before any other hook puts others in their place."""
        if self._is_watching and not trainer.sanity_checking and trainer.state.fn == "fit":
            self.best.hold(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights if they are the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated_step = steps_done(trainer)
        self.best.consider(trainer, agreed(trainer, self.best.monitor))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is wanted, and after every `checkpoint.every_epochs`, unless the run has just resumed here."""
        is_due = self.every_epochs and trainer.current_epoch % self.every_epochs == 0
        if (is_due or self.is_wanted) and steps_done(trainer) > self._saved_step:
            self.save(trainer)

    def finish(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Validate the last weights, save, and wait for the disk; RunError on all ranks where that fails."""
        is_validated = self._validated_step == steps_done(trainer)
        if not is_validated or (self._is_watching and self.best.has_changed(trainer)):
            with _in_last_epoch(trainer):
                _validate(trainer)
                if not self.best.exists:
                    self._keep_unvalidated(trainer, module)
        self.save(trainer)
        self.errors.raise_first(trainer)

    def _keep_unvalidated(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Without any validation the end of training counts as the best, averaged where that is asked for."""
        averages = [callback for callback in trainer.callbacks if isinstance(callback, Ema)]  # type: ignore[attr-defined]
        for average in averages:
            average.on_validation_start(trainer, module)
        self.best.consider(trainer, float(trainer.callback_metrics.get(self.best.monitor, math.nan)))
        for average in averages:
            average.on_validation_end(trainer, module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Rescue the best weights."""
        self._writer.begin(self.best.jobs(), background=False)
        self.errors.print_all()

    def save(self, trainer: pl.Trainer) -> None:
        """Write both checkpoints, or begin to. Under more than one rank all must call it at the same step."""
        self._writer.wait()  # until then its copies are in use
        self.errors.must_stop()
        self._losses.flush()
        if self._write:
            drop_unreferenced_shards(self._run)  # of a save that has failed: this one may need the room
        try:
            trainer.save_checkpoint(self._run.last)
        except RunError as e:  # on all ranks, where one of them could not write its shards
            self._writer.errors.append(e)
        if self._write:
            jobs: list[Job] = [
                self._sync_journal,
                *self.best.jobs(),
                *self._taken,
                partial(drop_unreferenced, self._run),
            ]
            self._writer.begin(jobs, background=self._background)
            self._taken = []
        self._saved_at, self._saved_step, self.is_wanted = time.monotonic(), steps_done(trainer), False

    def settle(self, trainer: pl.Trainer) -> None:
        """Wait until rank 0 has written everything, and print what it could not."""
        self._writer.wait()
        self.errors.print_all()
        trainer.strategy.barrier("checkpoint")

    def _take(self, checkpoint: Mapping[str, Any]) -> None:
        """Copy what is to be written as `last`, unless training waits for the disk anyway."""
        note = {"step": checkpoint["steps"]["steps"], "best": self.best.step}
        note |= {"beside": checkpoint["beside"]} if "beside" in checkpoint else {}
        if self._background and (lack := self._staging.lacks(checkpoint)):
            self._background, self._staging = False, Staging()
            needed, free = (f"{size / 1e9:.1f} GB" for size in lack)
            self.errors.warn(
                f"Checkpoints are written synchronously: a copy takes {needed}, and {free} of host memory are free."
            )
        try:
            copied = self._staging.copy(checkpoint) if self._background else plain(checkpoint)
        except HpcexpError as e:
            self._writer.errors.append(e)
        else:
            self._taken = [partial(write_checkpoint, copied, self._run.last, note, self._run.previous)]

    def _sync_journal(self) -> None:
        """A checkpoint must not be newer than the journal, and what else user code has logged."""
        active.sync()
        if self._run.journal.exists():
            fsync(self._run.journal)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know; the best weights are in `best.ckpt`."""
        return {"best": self.best.facts(), "validated_step": self._validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the best of an interrupted run."""
        self._validated_step = state_dict["validated_step"]
        if best := state_dict["best"]:
            self.best.resume(best)


class Finish(FastCallback):
    """Ends training for `Checkpointing`, behind callbacks that change the weights then, as SWA does."""

    def __init__(self, checkpointing: Checkpointing) -> None:
        self._checkpointing = checkpointing

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate, save, wait."""
        self._checkpointing.finish(trainer, pl_module)


_AROUND = (
    *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end"),
    *("on_validation_epoch_end", "on_validation_end", "on_validation_model_eval", "on_train_end"),
)


def _may_change_weights(owner: pl.Callback | pl.LightningModule) -> bool:
    """Whether it has hooks around a validation that are not hpcexp's own."""
    kind = type(owner)
    base = pl.Callback if isinstance(owner, pl.Callback) else pl.LightningModule
    if kind.__module__.startswith("hpcexp.") or kind is EarlyStopping:
        return False
    return any(getattr(kind, name, None) is not getattr(base, name, None) for name in _AROUND)


def _validate(trainer: pl.Trainer) -> None:
    """A validation at the end of training, with all its hooks."""
    if trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


@contextmanager
def _in_last_epoch(trainer: pl.Trainer) -> Iterator[None]:
    """Undo that Lightning counts the last epoch when training ends: its weights and metrics belong to that epoch."""
    counted = trainer.fit_loop.epoch_progress.current
    counted.completed -= 1
    try:
        yield
    finally:
        counted.completed += 1
