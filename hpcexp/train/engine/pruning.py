"""Asking a search after each validation whether training is to go on."""

from __future__ import annotations

import contextlib
import math
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl

from hpcexp.rank_protocol import RankEnv, Report, send, verdict_reader
from hpcexp.train.checkpointing.best_and_last import monitored
from hpcexp.train.engine.interrupts import Interrupts
from hpcexp.train.runtime.fast_hooks import LeanCallback

OBJECTIVE = "objective"
"""What the metric of a search is called where it is wrong."""
ANSWER_S = 30.0
"""So long rank 0 waits for an answer; then training goes on."""


class Question:
    """Reports to the supervisor and waits for its verdict."""

    def __init__(self, events_fd: int, verdicts_fd: int) -> None:
        self._events_fd, self._verdicts = events_fd, verdict_reader(verdicts_fd)

    def __call__(self, epoch: int, value: float) -> bool:
        """Whether training ends here; False where nobody answers."""
        with contextlib.suppress(OSError):
            send(self._events_fd, Report(rank=0, epoch=epoch, value=value if math.isfinite(value) else None))
            return self._answer(epoch)
        return False

    def _answer(self, epoch: int) -> bool:
        """Passes over verdicts on earlier epochs, which came too late."""
        deadline = time.monotonic() + ANSWER_S
        while (left_s := deadline - time.monotonic()) > 0 and select.select([self._verdicts.fd], [], [], left_s)[0]:
            for verdict in self._verdicts.read():
                if verdict.epoch == epoch:
                    return verdict.prune
            if not self._verdicts.is_open:
                return False
        return False


@dataclass(frozen=True)
class Judged:
    """How a rank of a job that is judged takes part in it."""

    metric: str
    ask: Callable[[int, float], bool] | None
    """On rank 0."""


def judged(env: RankEnv) -> Judged | None:
    """The part of this rank; None where the job is not judged."""
    if env.pruning_metric is None:
        return None
    if env.events_fd is None or env.verdicts_fd is None:
        return Judged(env.pruning_metric, None)
    return Judged(env.pruning_metric, Question(env.events_fd, env.verdicts_fd))


class Pruning(LeanCallback):
    """Has the metric judged after each validation, and all ranks end at the same step where it is not good enough."""

    def __init__(self, judged: Judged, control: Interrupts) -> None:
        self._judged, self._control = judged, control

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0 asks; the others hear of the answer from it."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        epoch, ask = trainer.current_epoch + 1, self._judged.ask
        value = float(monitored(trainer, self._judged.metric, what=OBJECTIVE))
        self._control.prune(epoch, is_wished=ask is not None and ask(epoch, value))
