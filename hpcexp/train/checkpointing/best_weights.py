"""The best weights so far: copied to host memory when a validation finds them, and written at the next save."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch

from hpcexp.files.atomic import second_name
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
from hpcexp.train.checkpointing.plain_data import plain
from hpcexp.train.checkpointing.staging import Staging
from hpcexp.train.checkpointing.writer import Job, Writer
from hpcexp.train.runtime.steps import steps_done
from hpcexp.train.runtime.weights import whole_weights


class BestWeights:
    """Weights, step and value of the best validation.

    `best.ckpt` is a second name of `best-STEP.ckpt`. The latter stays as long as `last` or `previous` refer to it: a
    run that resumes from either has the best weights of that time, whatever was written since.
    """

    def __init__(self, plan: Plan, run: RunDir, writer: Writer, *, write: bool) -> None:
        """`write`: whether this rank holds the weights and writes them; the others know step and value alone."""
        trainer = plan.settings.trainer
        self.monitor, self._sign = trainer.monitor, 1.0 if trainer.mode == "max" else -1.0
        self._plan, self._run, self._writer, self._write = plan, run, writer, write
        self._staging, self._held_staging = Staging(), Staging()
        self._held: Mapping[str, Any] | None = None
        self._best: dict[str, Any] | None = None
        self._rank = -math.inf
        """The best value, negated where less is better."""
        self._written_step: int | None = None

    @property
    def exists(self) -> bool:
        """Whether any validation, or the end of training, has set them."""
        return self._best is not None

    @property
    def step(self) -> int | None:
        """The step that they are of."""
        return None if self._best is None else self._best["global_step"]

    def facts(self) -> dict[str, Any]:
        """Epoch, step and value without the weights; empty before the first validation."""
        return {k: v for k, v in (self._best or {}).items() if k not in ("state_dict", "model")}

    def hold(self, trainer: pl.Trainer) -> None:
        """Copy the weights that the module has now for `consider`, before which they may change. All ranks call it."""
        weights = whole_weights(trainer)
        self._held = self._held_staging.copy(weights) if self._write else {}

    def has_changed(self, trainer: pl.Trainer) -> bool:
        """Whether the module has other weights than were held, if any were. All ranks call it."""
        held = self._held
        if held is None:
            return False
        weights = whole_weights(trainer)
        is_same = not self._write or all(torch.equal(held[name], value.cpu()) for name, value in weights.items())
        return bool(trainer.strategy.broadcast(not is_same))

    def consider(self, trainer: pl.Trainer, value: float) -> None:
        """Copy the weights that were held, or else that the module has now, if `value` is the best so far.

        All ranks call it.
        """
        # Of equals the later: on a small validation set the first of many perfect epochs is a lucky one.
        if self._best is not None and not self._sign * value >= self._rank:
            return
        self._rank = self._rank_of(value)
        weights = self._taken() if self._held is not None else self._copied(whole_weights(trainer))
        self._best = {
            "state_dict": weights,
            "epoch": trainer.current_epoch,
            "global_step": steps_done(trainer),
            "monitor": self.monitor,
            "value": value,
            "signature": self._plan.signature,
            "model": dict(self._plan.settings.model.given),
        }

    def jobs(self) -> list[Job]:
        """The job that writes them; none where they are on the disk already."""
        if self._best is None or not self._write or self.step == self._written_step:
            return []
        return [partial(self._write_file, self._best)]

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Continue from the facts in a checkpoint; the weights are in their file."""
        self._rank = self._rank_of(facts["value"])
        self._best = dict(facts)
        self._written_step = self.step

    def _taken(self) -> Any:
        """The weights that are held. The memory of the best before serves the next ones, unless the writer reads it."""
        free = Staging() if self._writer.is_busy else self._staging
        self._staging, self._held_staging = self._held_staging, free
        return self._held

    def _copied(self, weights: Mapping[str, Any]) -> Any:
        """A copy in the memory of the best before, unless the writer still reads that."""
        if not self._write:
            return {}
        if self._writer.is_busy:
            self._staging = Staging()
        return self._staging.copy(weights)

    def _write_file(self, best: dict[str, Any]) -> None:
        named = self._run.best_of(best["global_step"])
        write_checkpoint(plain(best), named)
        second_name(named, self._run.best)
        self._written_step = best["global_step"]

    def _rank_of(self, value: float) -> float:
        return -math.inf if math.isnan(value) else self._sign * value
