"""Folders of files, and their digests as hpcexp and as hashlib know them."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from helpers import wait_until

from hpcexp.data.digests import digests, stamp_of

OLD_NS = 1_700_000_000_000_000_000


def known(root: Path) -> list[str]:
    """The digests of all files of a folder, in the order of their names."""
    names = sorted(path.name for path in root.iterdir())
    return digests(root, names, [stamp_of((root / name).stat()) for name in names])


def real(root: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())]


def filled(root: Path, number: int = 20) -> Path:
    """A folder of small files that were written long enough ago to be remembered."""
    root.mkdir()
    for i in range(number):
        (root / f"{i:03}").write_bytes(os.urandom(100))
    settle(root)
    return root


def settle(root: Path) -> None:
    """Return when two changes of a file have two times: a tick of the clock that stamps files has passed."""
    newest = max(path.stat().st_ctime_ns for path in (root, *root.rglob("*")))
    wait_until(lambda: time.time_ns() > newest + 250_000_000, "a tick")


def replaced(file: Path) -> None:
    """Other bytes of the same length, under the same name and time."""
    told = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
