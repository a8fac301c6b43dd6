"""Signals, pruning and checkpoints in mid-training, at a step that all ranks agree on."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from hpcexp.train.checkpointing.best_and_last import Checkpointing
from hpcexp.train.checkpointing.exact_resume import can_save, is_resumable
from hpcexp.train.engine.ending import Ending
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.steps import steps_done

NOTHING, CHECKPOINT, END, PRUNE, STOP, FAIL = range(6)


class Interrupted(Exception):  # noqa: N818 - the name says what happened
    """A signal ended training, after a whole step and a checkpoint."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"ended by {signal.Signals(signum).name}")


class Pruned(Exception):  # noqa: N818 - as above
    """A search that knows better trials ended training, with a checkpoint."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        """From 1: the one whose validation decided it."""
        super().__init__(f"pruned at epoch {epoch}")


class Signals:
    """Remembers a signal that asks the process to end. The second one has its default action."""

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take SIGTERM and SIGINT; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            signal.signal(signal.SIGINT, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.received = signum


class Interrupts(FastCallback):
    """Ends training after a step when a signal came, and saves when a checkpoint is due.

    Training also ends when its time is over, when rank 0 cannot write a checkpoint and `checkpoint.on_error` says so,
    and when it is pruned.

    Signals and checkpoints wait for a step after which training can resume exactly, or for the start of the next
    epoch. Data that cannot resume inside an epoch makes a signal end training at once; the run then resumes from the
    last checkpoint.

    Under more than one rank the decision is the maximum over all ranks, by an all-reduce of one number over the CPU
    that runs beside the next step, so that no rank leaves the others waiting in a collective. It replaces the
    broadcast that Lightning makes at every step, which misses signals that reach other ranks than 0.
    """

    def __init__(self, signals: Signals, checkpointing: Checkpointing, ending: Ending, *, rank: int) -> None:
        self._ending = ending
        self._signals, self._checkpointing, self._leads = signals, checkpointing, rank == 0
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._decided = NOTHING
        self._pruned_at = 0

    def prune(self, epoch: int, *, is_wished: bool) -> None:
        """End training on all ranks if one of them wishes it, once a checkpoint can be taken.

        All must call it, after the validation of `epoch`. At the end of the last epoch nothing is left to end.
        """
        if self._group is not None:
            wishes = torch.tensor([int(is_wished)])
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX, group=self._group)
            is_wished = bool(wishes.item())
        if is_wished:
            self._decided, self._pruned_at = max(self._decided, PRUNE), epoch
            self._checkpointing.is_wanted = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning's own handler."""
        self._signals.install()
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Act on what is wished, once all hooks of the batch have run."""
        wish = self._wish(steps_done(trainer))
        if self._group is not None:
            wish = self._agreed(wish)
        self._decided = max(self._decided, wish)
        if self._decided == NOTHING:
            return
        if self._decided == END:
            trainer.should_stop, self._decided = True, NOTHING
            return
        if self._decided == FAIL:
            self._checkpointing.errors.raise_first(trainer)
        if can_save(trainer) and not trainer.should_stop:
            self._checkpointing.save(trainer)
            self._done(trainer)
        elif self._decided == STOP and not is_resumable(trainer):
            self._done(trainer)
        else:
            self._checkpointing.is_wanted = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End training: Checkpointing, whose hooks run before, has saved what was wanted."""
        self._done(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """End the test of a single rank: training has saved its end. A validation finishes first."""
        if self._signals.received is not None and self._group is None:
            raise Interrupted(self._signals.received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the all-reduce before the process group is destroyed."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None

    def _wish(self, step: int) -> int:
        if self._signals.received is not None:
            return STOP
        if self._checkpointing.errors.must_stop():
            return FAIL
        if self._ending.is_time_over:
            return END
        return CHECKPOINT if self._leads and self._checkpointing.is_due(step) else NOTHING

    def _agreed(self, wish: int) -> int:
        """The decision on the wishes of the step before; starts the exchange of this step's."""
        before = NOTHING
        if self._pending is not None:
            work, value = self._pending
            work.wait()
            before = int(value.item())
        mine = torch.tensor([wish if before == self._decided == NOTHING else NOTHING])
        op = torch.distributed.ReduceOp.MAX
        self._pending = (torch.distributed.all_reduce(mine, op=op, group=self._group, async_op=True), mine)
        return before

    def _done(self, trainer: pl.Trainer) -> None:
        decided, self._decided = self._decided, NOTHING
        if decided == STOP:
            self._checkpointing.settle(trainer)
            raise Interrupted(self._signals.received or signal.SIGTERM)
        if decided == PRUNE:
            self._checkpointing.settle(trainer)
            raise Pruned(self._pruned_at)
