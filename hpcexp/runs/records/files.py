"""Records in files: each is read and checked here, and written from the same type.

A file that is missing reads as a record of defaults. One that is damaged raises `UnusableFileError`, which names it; a
caller that lists many leaves it out and shows the rest. Fields that a later version adds are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from hpcexp.files.atomic import write_json
from hpcexp.files.documents import decode, plain, read_json
from hpcexp.files.untrusted import read_bytes

R = TypeVar("R", bound=Struct)


def read(path: Path, kind: type[R]) -> R:
    """The record in `path`; one of defaults where there is no file. UnusableFileError where it is damaged."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return kind()


def read_or_none(path: Path, kind: type[R]) -> R | None:
    """The record in `path`; None where there is no file. UnusableFileError where it is damaged."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None


def write(path: Path, record: Struct, mode: int = 0o666) -> None:
    """Replace the record in `path`, durably."""
    write_json(path, plain(record), mode)


def lines(path: Path, kind: type[R], limit: int) -> Iterator[tuple[int, R | None]]:
    """Number, from 1, and record of each line of a file; None for a line that is damaged or torn.

    Nothing where there is no file. UnusableFileError where it is no regular file, or larger than `limit` bytes.
    """
    try:
        content = read_bytes(path, limit)
    except FileNotFoundError:
        return
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield number, decode(line, kind)
        except ValueError:
            yield number, None
