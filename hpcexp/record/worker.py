"""The process in which uvicorn answers requests for `hpcexp serve`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

PARENT = "HPCEXP_SERVE_PID"
"""Variable with the process that a worker must not outlive."""
_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends."""


def event_loop() -> AbstractEventLoop:
    """uvicorn's own, for its `--loop`, which is what MLflow lets us have called in the worker.

    From here on the worker ends with its parent, however that ends: at once, as the lock of the directory is free then.
    """
    from uvicorn.loops.auto import auto_loop_factory

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):
        sys.exit("The server that this worker was started by is gone.")
    return auto_loop_factory()()
