"""Errors of saves that run beside training: printed where training continues, raised on all ranks where it ends."""

from __future__ import annotations

import contextlib
import sys

import pytorch_lightning as pl

from hpcexp.errors import HpcexpError, RunError
from hpcexp.train.checkpointing.writer import Writer


class SaveErrors:
    """What the writer's jobs failed with, and warnings that wait for a log that can take them."""

    def __init__(self, writer: Writer, *, on_error: str) -> None:
        """`on_error`: `checkpoint.on_error`."""
        self._writer, self._on_error = writer, on_error
        self._unflushed = False

    def must_stop(self) -> bool:
        """Whether training ends because a save failed. Prints each error once where it continues."""
        if (errors := self._writer.errors) and self._on_error == "continue" and all(map(_is_of_the_disk, errors)):
            self.print_all("Training continues (checkpoint.on_error=continue), and the previous checkpoint stays.")
        elif self._unflushed:
            self._flush()
        return bool(self._writer.errors)

    def raise_first(self, trainer: pl.Trainer) -> None:
        """Wait until rank 0 has written everything; RunError on all ranks where it could not."""
        self._writer.wait()
        first = next(iter(self._writer.errors), None)
        message = trainer.strategy.broadcast(None if first is None else _text(first))
        self._writer.errors.clear()
        if message is not None:
            raise RunError(message) from first

    def print_all(self, then: str = "") -> None:
        """Print what has failed so far, each followed by `then`."""
        errors, self._writer.errors = self._writer.errors, []
        for error in errors:
            self.warn(f"{_text(error)}\n{then}".rstrip())

    def warn(self, text: str) -> None:
        """Print a warning, now or as soon as the log takes it."""
        self._unflushed = True
        with contextlib.suppress(OSError):
            sys.stderr.write(f"WARNING: {text}\n")
        self._flush()

    def _flush(self) -> None:
        # stderr is the run's log, on the same full disk as the checkpoint may be. What it cannot write stays in its
        # buffer: printed again, it would be there twice.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            self._unflushed = False


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, HpcexpError) else f"A checkpoint could not be written: {error!r}"


def _is_of_the_disk(error: Exception) -> bool:
    return isinstance(error, RunError | OSError)
