"""What a user can fix: printed without a traceback, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HpcexpError(Exception):
    """A mistake the user can mend. The message says what, why and how to fix."""


class ConfigError(HpcexpError):
    """One or more mistakes in what was asked for, all of them reported together."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n\n".join(self.problems))


class RunError(HpcexpError):
    """A run directory that is missing, damaged, or held by somebody else."""


class InUseError(RunError):
    """Something that one process at a time may have, and another one has."""


class DataError(HpcexpError):
    """Data that is missing, damaged, or not what the configuration says."""


class JobFailed(Exception):  # noqa: N818 - the name says what happened
    """A run that started and did not finish: exit status 1."""


def suggest(word: str, options: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest option, or an empty string."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else ""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`suggest` as a sentence with a space behind it, or an empty string."""
    near = suggest(word, options)
    return f"{near[0].upper()}{near[1:]} " if near else ""


def listed(options: Iterable[str]) -> str:
    """Options as they stand in a message: `a, b, c`."""
    return ", ".join(sorted(options)) or "none"
