"""Asks a search after each validation whether training continues."""

from __future__ import annotations

import contextlib
import math
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl

from hpcexp.rank_protocol import RankEnv, Report, send, verdict_reader
from hpcexp.train.checkpointing.monitor import monitored
from hpcexp.train.engine.interrupts import Interrupts
from hpcexp.train.runtime.fast_hooks import FastCallback

OBJECTIVE = "objective"
"""What messages call the metric of a search."""
ANSWER_S = 30.0
"""Rank 0 waits this long for an answer; then training continues."""


class Question:
    """Reports to the supervisor and waits for its verdict."""

    def __init__(self, events_fd: int, verdicts_fd: int) -> None:
        self._events_fd, self._verdicts = events_fd, verdict_reader(verdicts_fd)

    def __call__(self, epoch: int, value: float) -> bool:
        """Whether training ends here; False if nobody answers."""
        with contextlib.suppress(OSError):
            send(self._events_fd, Report(rank=0, epoch=epoch, value=value if math.isfinite(value) else None))
            return self._answer(epoch)
        return False

    def _answer(self, epoch: int) -> bool:
        """The verdict on this epoch, skipping late ones on earlier epochs."""
        deadline = time.monotonic() + ANSWER_S
        while (left_s := deadline - time.monotonic()) > 0 and select.select([self._verdicts.fd], [], [], left_s)[0]:
            for verdict in self._verdicts.read():
                if verdict.epoch == epoch:
                    return verdict.prune
            if not self._verdicts.is_open:
                return False
        return False


@dataclass(frozen=True)
class PruningQuery:
    """The part of a rank in deciding whether its trial is pruned."""

    metric: str
    """Reported after each validation."""
    ask: Callable[[int, float], bool] | None
    """Sends epoch and value, and returns whether training ends; None on ranks other than 0."""


def pruning_query(env: RankEnv) -> PruningQuery | None:
    """The part of this rank; None if the job is no trial that may be pruned."""
    if env.pruning_metric is None:
        return None
    if env.events_fd is None or env.verdicts_fd is None:
        return PruningQuery(env.pruning_metric, None)
    return PruningQuery(env.pruning_metric, Question(env.events_fd, env.verdicts_fd))


class Pruning(FastCallback):
    """Reports the metric after each validation; all ranks end at the same step when the trial is pruned."""

    def __init__(self, query: PruningQuery, interrupts: Interrupts) -> None:
        self._query, self._interrupts = query, interrupts

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0 asks, and shares the answer with the others."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        epoch, ask = trainer.current_epoch + 1, self._query.ask
        value = float(monitored(trainer, self._query.metric, what=OBJECTIVE))
        self._interrupts.prune(epoch, is_wished=ask is not None and ask(epoch, value))
