"""Writes that are either whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: str | bytes, mode: int = 0o666, *, is_durable: bool = True) -> None:
    """Replace `path` by `content`, durably: readers and crashes see the old file or the new one.

    `mode` is what the file may be read and written by, less the umask. Without `is_durable` a crash of the machine may
    lose it; who wants it to last calls `fsync` later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_half_written(path: Path) -> bool:
    """Whether `write_atomic` was killed in the middle of it."""
    return re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}", path.name) is not None


def second_name(path: Path, name: Path) -> None:
    """Let `name` be the file `path` too, in place of what it was; a copy where the file system has no hard links."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # rename(2) leaves both where they are the same file already


def write_json(path: Path, value: Mapping[str, Any], mode: int = 0o666) -> None:
    """`write_atomic` of a JSON object that people can read."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode)


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Have the file's content, or the directory's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
