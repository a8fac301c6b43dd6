"""A seal at a checkpoint's end: a checksum and a note, which the planning side reads without torch.

`content, note (JSON), length of the note, CRC-32 of all before (both little-endian uint32), magic`: readers of zip
archives, which torch's checkpoints are, pass over what follows the archive.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

_MAGIC = b"hpcexp\x00\x01"
_END = struct.Struct("<II8s")
_CHUNK = 4 << 20


def seal(path: Path, note: dict[str, Any]) -> None:
    """Append the seal to what stands in `path`."""
    text = json.dumps(note).encode()
    text += struct.pack("<I", len(text))
    checksum = zlib.crc32(text, _checksum(path, path.stat().st_size))
    with path.open("ab") as file:
        file.write(text + struct.pack("<I8s", checksum, _MAGIC))


def read_note(path: Path) -> dict[str, Any] | None:
    """The note, its checksum not looked at; None where there is no file with a seal."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _END.size))
            length, _, magic = _END.unpack(file.read())
            if magic != _MAGIC:
                return None
            file.seek(size - _END.size - length)
            note: dict[str, Any] = json.loads(file.read(length))
            return note
    except (OSError, ValueError, struct.error):
        return None


def is_sealed(path: Path) -> bool:
    """Whether the file ends in a seal, right or wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(_MAGIC)))
        return file.read() == _MAGIC


def is_intact(path: Path) -> bool:
    """Whether the file has a seal whose checksum is right."""
    try:
        size = path.stat().st_size
        if size < _END.size or not is_sealed(path):
            return False
        with path.open("rb") as file:
            file.seek(size - _END.size)
            _, checksum, _ = _END.unpack(file.read())
        return bool(_checksum(path, size - _END.size + 4) == checksum)
    except OSError:
        return False


def _checksum(path: Path, size: int) -> int:
    """CRC-32 of the first `size` bytes."""
    value = 0
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(_CHUNK, size))):
            value = zlib.crc32(chunk, value)
            size -= len(chunk)
    return value
