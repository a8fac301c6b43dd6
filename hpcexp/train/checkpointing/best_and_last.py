"""Best and last weights: the best are held in memory as soon as they are known, and both are written at checkpoints."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hpcexp.errors import ConfigError, HpcexpError, RunError, suggest
from hpcexp.files.atomic import fsync, second_name
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.integrity import read_note
from hpcexp.train.checkpointing.checkpoint_io import AtomicCheckpointIO, plain, write_checkpoint
from hpcexp.train.checkpointing.staging import Staging
from hpcexp.train.checkpointing.writer import Job, Writer
from hpcexp.train.optim.ema import Ema
from hpcexp.train.runtime.fast_hooks import LeanCallback
from hpcexp.train.runtime.weights import whole_weights
from hpcexp.train.tasks.supervised import Supervised


class Checkpointing(LeanCallback):
    """Keeps `best.ckpt`, `last.ckpt`, and the `previous.ckpt` before that.

    When a validation is the best so far, its weights are copied to host memory. `save` writes them if they are new, and
    the state of training; `is_due` says when `checkpoint.every_s` or `every_steps` has passed. The end of training and
    of every `checkpoint.every_epochs` saves by itself, the latter when the next epoch starts, as only then everything
    that belongs to the epoch is done. A crash writes only the best: one cannot go on from inside a step.

    With `checkpoint.async_write` a save only copies to host memory, and a thread writes. What a save writes, it writes
    in order: the journal, best weights, the `last` that refers to them; then what nothing refers to any more goes. A
    save that comes while one is being written waits for it; one that is due by time is late instead. The end of
    training, of whatever kind, waits until everything is on the disk.

    `best.ckpt` is a second name of `best-STEP.ckpt`. These stay as long as `last` or `previous` refer to them, so that
    a run that goes on from either has the best weights of that time, whatever was written since.
    """

    def __init__(self, plan: Plan, run: RunDir, *, write: bool) -> None:
        trainer, checkpoint = plan.config["trainer"], plan.config["checkpoint"]
        self.monitor, self.sign = trainer["monitor"], 1.0 if trainer["mode"] == "max" else -1.0
        self.every_s, self.every_epochs = checkpoint.get("every_s"), checkpoint.get("every_epochs")
        self.every_steps = checkpoint.get("every_steps")
        self.is_wanted = False
        """Whether to save when the next epoch starts."""
        self.best: dict[str, Any] | None = None
        self._plan, self._run, self._write = plan, run, write
        self._background, self._on_error = checkpoint["async_write"], checkpoint["on_error"]
        self._writer, self._taken, self._unsaid = Writer(), list[Job](), list[str]()
        self._staging, self._best_staging = Staging(), Staging()
        self._best_value = -math.inf
        self._best_written: int | None = None
        self._saved_at = time.monotonic()
        self._judged_at: int | None = None
        self._saved_step = 0

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint."""
        if self.every_steps is not None and step - self._saved_step >= self.every_steps:
            return True
        is_time = self.every_s is not None and time.monotonic() - self._saved_at >= self.every_s
        return is_time and not self._writer.is_busy

    def best_step(self) -> int | None:
        """The step of the best weights so far."""
        return self.best["global_step"] if self.best is not None else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See to the writing of `last`."""
        if isinstance(io := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            io.take = self._take

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count to the first checkpoint from here."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold the weights if they are the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._judged_at = trainer.global_step
        self._judge(trainer, float(monitored(trainer, self.monitor)))

    def _judge(self, trainer: pl.Trainer, value: float) -> None:
        # Of equals the later: on a small validation set the first of many perfect epochs is a lucky one.
        if self.best is not None and not self.sign * value >= self._best_value:
            return
        self._best_value = self._rank_of(value)
        weights = whole_weights(trainer)
        self.best = {
            "state_dict": self._copied(weights) if self._write else {},
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "monitor": self.monitor,
            "value": value,
            "signature": self._plan.signature,
            "model": self._plan.config["model"],
        }

    def _copied(self, weights: Mapping[str, Any]) -> Any:
        """In the memory of the best before, unless that is being written."""
        if self._writer.is_busy:
            self._best_staging = Staging()
        return self._best_staging.copy(weights)

    def _keep_unjudged(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Without a validation the end of training is the best there is, averaged where that is asked for."""
        averages = [callback for callback in trainer.callbacks if isinstance(callback, Ema)]  # type: ignore[attr-defined]
        for average in averages:
            average.on_validation_start(trainer, module)
        self._judge(trainer, float(trainer.callback_metrics.get(self.monitor, math.nan)))
        for average in averages:
            average.on_validation_end(trainer, module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is wanted, and after every `checkpoint.every_epochs`, unless the run goes on from here."""
        is_due = self.every_epochs and trainer.current_epoch % self.every_epochs == 0
        if (is_due or self.is_wanted) and trainer.global_step > self._saved_step:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate what has not been, save both, and have them on the disk; RunError on all ranks where that fails."""
        if self._judged_at != trainer.global_step:
            with _in_last_epoch(trainer):
                _validate(trainer)
                if self.best is None:
                    self._keep_unjudged(trainer, pl_module)
        self.save(trainer)
        self.raise_failure(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Rescue the best weights."""
        self._writer.begin(self._best_jobs(), background=False)
        self._say_errors()

    def save(self, trainer: pl.Trainer) -> None:
        """Have both checkpoints written. Under more than one rank all must call it at the same step."""
        self._writer.wait()  # until then its copies are in use
        self.has_failed()
        if isinstance(trainer.lightning_module, Supervised):
            trainer.lightning_module.losses.flush()
        if self._write:
            _drop_shards(self._run)  # of a save that has failed: this one may need the room
        try:
            trainer.save_checkpoint(self._run.last)
        except RunError as e:  # on all ranks, where one of them could not write its shards
            self._writer.errors.append(e)
        if self._write:
            jobs = [self._sync_journal, *self._best_jobs(), *self._taken, self._prune]
            self._writer.begin(jobs, background=self._background)
            self._taken = []
        self._saved_at, self._saved_step, self.is_wanted = time.monotonic(), trainer.global_step, False

    def _take(self, checkpoint: Mapping[str, Any]) -> None:
        """Copy what is to be written as `last`, unless it is written before training goes on."""
        note = {"step": checkpoint.get("global_step"), "best": self.best_step()}
        note |= {"beside": checkpoint["beside"]} if "beside" in checkpoint else {}
        if self._background and (lack := self._staging.lacks(checkpoint)):
            self._background, self._staging = False, Staging()
            needed, free = (f"{size / 1e9:.1f} GB" for size in lack)
            self._say(f"Checkpoints are written synchronously: a copy takes {needed}, of host memory {free} are free.")
        try:
            copied = self._staging.copy(checkpoint) if self._background else plain(checkpoint)
        except HpcexpError as e:
            self._writer.errors.append(e)
        else:
            self._taken = [partial(write_checkpoint, copied, self._run.last, note, self._run.previous)]

    def has_failed(self) -> bool:
        """Whether training is to end as a checkpoint could not be written. Where it is to go on, says so, once each."""
        if (errors := self._writer.errors) and self._on_error == "continue" and all(map(_is_of_the_disk, errors)):
            self._say_errors("Training goes on (checkpoint.on_error=continue), and the checkpoint before stays.")
        elif self._unsaid:
            self._say_rest()
        return bool(self._writer.errors)

    def raise_failure(self, trainer: pl.Trainer) -> None:
        """Wait until rank 0 has written everything; RunError on all ranks where it could not."""
        self._writer.wait()
        first = next(iter(self._writer.errors), None)
        said = trainer.strategy.broadcast(None if first is None else _text(first))
        self._writer.errors.clear()
        if said is not None:
            raise RunError(said) from first

    def settle(self, trainer: pl.Trainer) -> None:
        """Wait until rank 0 has written everything, and say where it could not."""
        self._writer.wait()
        self._say_errors()
        trainer.strategy.barrier("checkpoint")

    def _say_errors(self, then: str = "") -> None:
        errors, self._writer.errors = self._writer.errors, []
        for error in errors:
            self._say(f"{_text(error)}\n{then}".rstrip())

    def _say(self, text: str) -> None:
        self._unsaid.append(f"WARNING: {text}")
        self._say_rest()

    def _say_rest(self) -> None:
        """On stderr, which is the run's log: a full disk takes it later."""
        with contextlib.suppress(OSError):
            while self._unsaid:
                print(self._unsaid[0], file=sys.stderr, flush=True)
                del self._unsaid[0]

    def _sync_journal(self) -> None:
        """A checkpoint must not be newer than the journal."""
        if self._run.journal.exists():
            fsync(self._run.journal)

    def _best_jobs(self) -> list[Job]:
        """What writes the best weights, if they are not on the disk yet."""
        if self.best is None or not self._write or self.best["global_step"] == self._best_written:
            return []
        return [partial(self._write_best, self.best)]

    def _write_best(self, best: dict[str, Any]) -> None:
        named = self._run.best_of(best["global_step"])
        write_checkpoint(plain(best), named)
        second_name(named, self._run.best)
        self._best_written = best["global_step"]

    def best_facts(self) -> dict[str, Any]:
        """Epoch, step and value of the best so far, without its weights; empty where there is none."""
        return {k: v for k, v in (self.best or {}).items() if k not in ("state_dict", "model")}

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs to know; the best weights are in `best.ckpt`."""
        return {"best": self.best_facts(), "judged_at": self._judged_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best of an interrupted run."""
        self._judged_at = state_dict["judged_at"]
        if best := state_dict["best"]:
            self._best_value = self._rank_of(best["value"])
            self.best = dict(best)
            self._best_written = best["global_step"]

    def _rank_of(self, value: float) -> float:
        return -math.inf if math.isnan(value) else self.sign * value

    def _prune(self) -> None:
        """Delete best weights and shards that no checkpoint refers to any more."""
        notes = map(read_note, (self._run.last, self._run.previous))
        kept = {self._run.best_of(note.best) for note in notes if note and note.best is not None}
        for path in set(self._run.checkpoints.glob("best-*.ckpt")) - kept:
            path.unlink(missing_ok=True)
        _drop_shards(self._run)


def _drop_shards(run: RunDir) -> None:
    """Delete what neither of the two checkpoints refers to."""
    notes = map(read_note, (run.last, run.previous))
    kept = {name.partition("/")[0] for note in notes if note for name in note.beside}
    for directory in run.checkpoints.glob("shards-*"):
        if directory.name not in kept:
            shutil.rmtree(directory, ignore_errors=True)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, HpcexpError) else f"A checkpoint could not be written: {error!r}"


def _is_of_the_disk(error: Exception) -> bool:
    return isinstance(error, RunError | OSError)


def check_monitor(monitor: str, known: list[str], *, what: str = "trainer.monitor") -> None:
    """ConfigError where a metric that is to be monitored is none of those that a validation gives."""
    if monitor in known:
        return
    near = suggest(monitor, known)
    raise ConfigError(
        f"{what}={monitor} is no metric of this task{f'; {near}' if near else ''}.\n"
        f"A validation gives: {', '.join(known)}.\nFix: {what}={known[-1]}, or add the metric to task.metrics."
    )


def monitored(trainer: pl.Trainer, monitor: str, *, what: str = "trainer.monitor") -> Tensor:
    """The metric's newest value, not a number where it is no single one; ConfigError where it was not logged."""
    value = trainer.callback_metrics.get(monitor)
    if value is None:
        logged = sorted(trainer.callback_metrics)
        near = suggest(monitor, logged)
        raise ConfigError(
            f"{what}={monitor} was not logged by the first validation{f'; {near}' if near else ''}.\n"
            f"{type(trainer.lightning_module).__name__} has logged: {', '.join(logged) or 'nothing'}.\n"
            f"Fix: {what}={logged[-1] if logged else 'NAME'}, or self.log('{monitor}', …) in validation_step."
        )
    return value if isinstance(value, Tensor) else torch.tensor(float("nan"))


def _validate(trainer: pl.Trainer) -> None:
    """A validation at the end of training, with all its hooks."""
    if trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


@contextmanager
def _in_last_epoch(trainer: pl.Trainer) -> Iterator[None]:
    """Lightning has counted the last epoch when training ends; what is said of its weights belongs to it."""
    counted = trainer.fit_loop.epoch_progress.current
    counted.completed -= 1
    try:
        yield
    finally:
        counted.completed += 1
