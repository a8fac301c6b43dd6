"""Asking a search after each validation whether training is to go on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytorch_lightning as pl

from hpcexp.train.checkpointing.best_and_last import monitored
from hpcexp.train.engine.interrupts import Interrupts
from hpcexp.train.runtime.fast_hooks import LeanCallback

OBJECTIVE = "objective"
"""What the metric of a search is called where it is wrong."""
ANSWER_S = 30.0
"""So long rank 0 waits for an answer; then training goes on."""


class Question:
    """Asks the supervisor, up the pipe on which it hears of progress; the answer comes down another."""

    def __init__(self, progress_fd: int, answer_fd: int) -> None:
        self._progress_fd, self._answer_fd = progress_fd, answer_fd
        self._rest = b""

    def __call__(self, epoch: int, value: float) -> bool:
        """Whether training is to end; not so where nobody hears or answers."""
        line = json.dumps({"rank": 0, "report": {"step": epoch, "value": value}})
        with contextlib.suppress(OSError):
            os.write(self._progress_fd, f"{line}\n".encode())
            return self._answer(epoch)
        return False

    def _answer(self, epoch: int) -> bool:
        """Passes over answers to earlier questions, which came too late."""
        deadline = time.monotonic() + ANSWER_S
        while (left_s := deadline - time.monotonic()) > 0 and select.select([self._answer_fd], [], [], left_s)[0]:
            chunk = os.read(self._answer_fd, 4096)
            if not chunk:
                return False
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for answer in map(json.loads, lines):
                if answer["step"] == epoch:
                    return bool(answer["prune"])
        return False


@dataclass(frozen=True)
class Judged:
    """How a rank of a job that is judged takes part in it."""

    metric: str
    ask: Callable[[int, float], bool] | None
    """On rank 0."""


def judged(environ: Mapping[str, str]) -> Judged | None:
    """As the supervisor has told this rank; None where the job is not judged."""
    if (metric := environ.get("HPCEXP_JUDGED")) is None:
        return None
    fds = [environ.get(name) for name in ("HPCEXP_PROGRESS_FD", "HPCEXP_ANSWER_FD")]
    return Judged(metric, Question(*(int(fd) for fd in fds if fd)) if all(fds) else None)


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
