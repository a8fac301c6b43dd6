"""Checkpoints are written beside training, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

Job = Callable[[], object]


class Writer:
    """Does what a save has to do, in its order; where a job fails, those after it are left out.

    One save at a time, in a thread that is made for it. The thread is no daemon: a process that ends by itself finishes
    what it has begun.
    """

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        """What saves have failed of, until somebody takes it out."""
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, jobs: Sequence[Job], *, background: bool) -> None:
        """Wait for the save before, and start with this one, or do all of it where not in the `background`."""
        self.wait()
        if not background:
            self._do(jobs)
            return
        self._thread = threading.Thread(target=self._do, args=(jobs,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _do(self, jobs: Sequence[Job]) -> None:
        try:
            for job in jobs:
                job()
        except Exception as e:  # noqa: BLE001 - the main thread raises it, or says it
            self.errors.append(e)
