"""What hpcexp prints, with control characters shown instead of obeyed.

Names, messages and logs may be others', and a terminal takes control characters in them for orders: to move the cursor
over what stands there, to change its title, to fill the clipboard. Every command writes through `guard`, so nothing
has to be escaped where it is printed. What is meant for the terminal itself goes to `beneath`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from hpcexp.text.formatting import shown


class Guarded:
    """A text stream that shows the control characters of what is written to it."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        """As a stream's: the number of characters that were given."""
        self.inner.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Each as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def guard() -> None:
    """Have stdout and stderr escape what is written to them from now on."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


@contextmanager
def guarded() -> Iterator[None]:
    """`guard`, for as long as the context lasts."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def beneath(stream: TextIO) -> TextIO:
    """The terminal or file below a guarded stream: for our own cursor movements, and a job's own output."""
    return stream.inner if isinstance(stream, Guarded) else stream


def say(text: str) -> None:
    """Print it. Where nobody reads any more, as behind `| head`, the job continues."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


def pass_on(text: str) -> None:
    """`say` what the user's own code printed, as it is."""
    with suppress(OSError, ValueError):
        print(text, file=beneath(sys.stdout), flush=True)


def _guarded(stream: TextIO) -> TextIO:
    return stream if isinstance(stream, Guarded) else cast(TextIO, Guarded(stream))
