"""What an exception of a job says to its user, with hpcexp's words for what Lightning advises."""

from __future__ import annotations

import pickle
import traceback

from hpcexp.targets.trainer_arguments import in_hpcexps_words

_SENDERS = ("popen_spawn_posix.py", "popen_forkserver.py", "reduction.py")
"""Files of multiprocessing that send an object to a process that it starts afresh."""


def cause_of(error: BaseException, place: str = "") -> str:
    """The exception in a few lines. `place`: where it was raised, as ` (file:line)`."""
    said = f"{type(error).__name__}: {error}{place}"
    advice = _pickling(error) or in_hpcexps_words(str(error))
    return f"{said}\n{advice}" if advice else said


def _pickling(error: BaseException) -> str:
    """What to do where an object could not be sent to a worker process."""
    if not isinstance(error, pickle.PicklingError | AttributeError | TypeError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    if not any(frame.filename.endswith(_SENDERS) for frame in frames):
        return ""
    if any("dataloader.py" in frame.filename for frame in frames):
        who = "A DataLoader starts its workers afresh (spawn)"
        fix = 'data.num_workers=0, or multiprocessing_context="fork" for the DataLoader'
    else:
        who, fix = "A process is started afresh (spawn)", "the start method fork"
    return (
        f"{who}, and what they get must be picklable: no lambdas, no classes or functions inside functions, no open "
        f"files, locks or connections.\nFix: define those at the top of a module, open files in the worker; or {fix}."
    )
