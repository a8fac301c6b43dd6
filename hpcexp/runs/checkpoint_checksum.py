"""A seal at a checkpoint's end: a checksum and a note, which the planning side reads without torch.

`content, note (JSON), length of the note, CRC-32 of all before (both little-endian uint32), magic`: readers of zip
archives, which torch's checkpoints are, pass over what follows the archive.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from msgspec import Struct

from hpcexp.files.documents import Count, decode
from hpcexp.files.untrusted import UnusableFileError, create, name_problem, open_below, open_regular

_MAGIC = b"hpcexp\x00\x01"
_END = struct.Struct("<II8s")
_CHUNK = 4 << 20
_MAX_NOTE = 16 << 20


class SealedFile:
    """A new file with a seal at its end; the checksum is worked out on the way, in the chunks that are written.

    Writing to it never raises: torch, which saves through it, would say that it is at an unexpected position instead of
    what the disk said. `seal` raises the first OSError.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(create(path), "wb")
        self._checksum = 0
        self._error: OSError | None = None

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # what was left of a write that has failed before
            self._file.close()

    def write(self, data: bytes | memoryview) -> int:
        """Add to the content. Neither the checksum nor the disk holds other Python threads up."""
        content = memoryview(data)
        for start in range(0, len(content), _CHUNK):
            chunk = content[start : start + _CHUNK]
            self._checksum = zlib.crc32(chunk, self._checksum)
            self._put(chunk)
        return len(content)

    def flush(self) -> None:
        """Nothing: `seal` sees to it."""

    def seal(self, note: dict[str, Any]) -> None:
        """End the content, and have all of it on the disk."""
        text = json.dumps(note).encode()
        self.write(text + struct.pack("<I", len(text)))
        self._put(struct.pack("<I8s", self._checksum, _MAGIC))
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())

    def _put(self, chunk: bytes | memoryview) -> None:
        if self._error is None:
            try:
                self._file.write(chunk)
            except OSError as e:
                self._error = e


class CheckpointNote(Struct, frozen=True, kw_only=True):
    """What a checkpoint's seal says of it."""

    step: Count | None = None
    """Optimizer steps up to it."""
    best: Count | None = None
    """Step of the best weights at that time."""
    beside: dict[str, tuple[Count, Count]] = {}
    """File that belongs to it, below its directory → bytes and CRC-32."""

    def __post_init__(self) -> None:
        if problem := next(filter(None, map(name_problem, self.beside)), None):
            raise ValueError(problem)


def read_note(path: Path) -> CheckpointNote | None:
    """The note, its checksum not looked at; None where there is no file with a seal."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _END.size))
            length, _, magic = _END.unpack(file.read())
            if magic != _MAGIC:
                return None
            if length > min(_MAX_NOTE, size - _END.size):
                return None
            file.seek(size - _END.size - length)
            return decode(file.read(length), CheckpointNote)
    except (OSError, ValueError, struct.error, UnusableFileError):
        return None


def read_checksum(path: Path) -> int | None:
    """The checksum of a seal, not looked at whether it is right; None where there is no file with a seal."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, 2) - _END.size))
            _, expected, magic = _END.unpack(file.read())
    except (OSError, struct.error, UnusableFileError):
        return None
    return int(expected) if magic == _MAGIC else None


def is_sealed(path: Path) -> bool:
    """Whether the file ends in a seal, right or wrong."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, 2) - len(_MAGIC)))
        return file.read() == _MAGIC


def is_intact(path: Path, *, alone: bool = False) -> bool:
    """Whether the file has a seal whose checksum is right, and so have the files that its note names as `beside` it.

    `alone`: these are not looked at.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < _END.size or not is_sealed(path):
                return False
            if _checksum(file, size - _END.size + 4) != read_checksum(path):
                return False
        note = None if alone else read_note(path)
        beside = note.beside if note else {}
        return all(_is(path.parent, name, length, value) for name, (length, value) in beside.items())
    except (OSError, UnusableFileError):
        return False


def _is(folder: Path, name: str, size: int, expected: int) -> bool:
    with open_below(folder, PurePath(name)) as file:
        return os.fstat(file.fileno()).st_size == size and _checksum(file, size) == expected


def checksum(path: Path, size: int) -> int:
    """CRC-32 of the first `size` bytes."""
    with open_regular(path) as file:
        return _checksum(file, size)


def _checksum(file: BinaryIO, size: int) -> int:
    value = 0
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        value = zlib.crc32(chunk, value)
        size -= len(chunk)
    return value
