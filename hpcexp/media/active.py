"""The recorder of the rank that this process is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpcexp.errors import RunError
from hpcexp.media.recorder import Recorder

_ACTIVE: list[Recorder] = []


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Have what user code logs meanwhile go to `recorder`, which is closed afterwards."""
    _ACTIVE.append(recorder)
    try:
        yield recorder
    finally:
        _ACTIVE.remove(recorder)
        recorder.close()


def sync() -> None:
    """Have everything that was logged on the disk."""
    for each in _ACTIVE:
        each.sync()


def recorder(word: str) -> Recorder:
    """The recorder; RunError outside a job. `word`: what was called."""
    if not _ACTIVE:
        raise RunError(
            f"{word} works in a job of hpcexp, and there is none in this process.\n"
            "Fix: call it from a module, callback or data module that `hpcexp train` runs."
        )
    _ACTIVE[-1].check_process(word)
    return _ACTIVE[-1]
