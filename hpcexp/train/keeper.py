"""Best and last weights: the best are held in memory as soon as they are known, and both are written at checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hpcexp.errors import ConfigError, suggest
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, second_name
from hpcexp.seal import read_note
from hpcexp.train.checkpoint import write_checkpoint
from hpcexp.train.ema import Ema
from hpcexp.train.lean import LeanCallback
from hpcexp.train.module import Supervised


class Keeper(LeanCallback):
    """Keeps `best.ckpt`, `last.ckpt`, and the `previous.ckpt` before that.

    When a validation is the best so far, its weights are copied to host memory. `save` writes them if they are new, and
    the state of training; `is_due` says when `checkpoint.every_s` or `every_steps` has passed. The end of training and
    of every `checkpoint.every_epochs` saves by itself, the latter when the next epoch starts, as only then everything
    that belongs to the epoch is done. A crash writes only the best: one cannot go on from inside a step.

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
        self._best_value = -math.inf
        self._best_saved = True
        self._saved_at = time.monotonic()
        self._judged_at: int | None = None
        self._saved_step = 0

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint."""
        if self.every_steps is not None and step - self._saved_step >= self.every_steps:
            return True
        return self.every_s is not None and time.monotonic() - self._saved_at >= self.every_s

    def best_step(self) -> int | None:
        """The step of the best weights so far."""
        return self.best["global_step"] if self.best is not None else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count to the first checkpoint from here."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold the weights if they are the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._judged_at = trainer.global_step
        self._judge(trainer, float(_monitored(trainer, self.monitor)))

    def _judge(self, trainer: pl.Trainer, value: float) -> None:
        # Of equals the later: on a small validation set the first of many perfect epochs is a lucky one.
        if self.best is not None and not self.sign * value >= self._best_value:
            return
        self._best_value = self._rank_of(value)
        weights = trainer.strategy.lightning_module_state_dict()
        self.best = {
            "state_dict": {k: v.detach().to("cpu", copy=True) for k, v in weights.items()} if self._write else {},
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "monitor": self.monitor,
            "value": value,
            "signature": self._plan.signature,
            "model": self._plan.config["model"],
        }
        self._best_saved = False

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
        """Validate what has not been, and save both."""
        if self._judged_at != trainer.global_step:
            with _in_last_epoch(trainer):
                _validate(trainer)
                if self.best is None:
                    self._keep_unjudged(trainer, pl_module)
        self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Rescue the best weights."""
        self.save_best()

    def save(self, trainer: pl.Trainer) -> None:
        """Write both checkpoints. Under more than one rank all must call it at the same step."""
        if isinstance(trainer.lightning_module, Supervised):
            trainer.lightning_module.flush()
        for logger in trainer.loggers:
            logger.save()
        self.save_best()
        trainer.save_checkpoint(self._run.last)
        if self._write:
            self._prune()
        self._saved_at, self._saved_step, self.is_wanted = time.monotonic(), trainer.global_step, False

    def save_best(self) -> None:
        """Write the best weights if they are not on the disk yet."""
        if self.best is not None and self._write and not self._best_saved:
            named = self._run.best_of(self.best["global_step"])
            write_checkpoint(self.best, named)
            second_name(named, self._run.best)
        self._best_saved = True

    def tidy(self) -> None:
        """Leave `best` and `last` alone: a finished run is not gone on with."""
        if self._write:
            for path in (self._run.previous, *self._run.checkpoints.glob("best-*.ckpt")):
                path.unlink(missing_ok=True)

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

    def _rank_of(self, value: float) -> float:
        return -math.inf if math.isnan(value) else self.sign * value

    def _prune(self) -> None:
        """Delete best weights that no checkpoint refers to any more."""
        notes = [read_note(path) or {} for path in (self._run.last, self._run.previous)]
        kept = {self._run.best_of(note["best"]) for note in notes if note.get("best") is not None}
        for path in set(self._run.checkpoints.glob("best-*.ckpt")) - kept:
            path.unlink(missing_ok=True)


def check_monitor(monitor: str, known: list[str]) -> None:
    """ConfigError where `trainer.monitor` is none of the metrics that a validation gives."""
    if monitor in known:
        return
    near = suggest(monitor, known)
    raise ConfigError(
        f"trainer.monitor={monitor} is no metric of this task{f'; {near}' if near else ''}.\n"
        f"A validation gives: {', '.join(known)}.\nFix: trainer.monitor={known[-1]}, or add the metric to task.metrics."
    )


def _monitored(trainer: pl.Trainer, monitor: str) -> Tensor:
    value = trainer.callback_metrics.get(monitor)
    if value is None:
        logged = sorted(trainer.callback_metrics)
        near = suggest(monitor, logged)
        raise ConfigError(
            f"trainer.monitor={monitor} was not logged by the first validation{f'; {near}' if near else ''}.\n"
            f"{type(trainer.lightning_module).__name__} has logged: {', '.join(logged) or 'nothing'}.\n"
            f"Fix: trainer.monitor={logged[-1] if logged else 'NAME'}, or self.log('{monitor}', …) in validation_step."
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
