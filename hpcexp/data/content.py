"""What a data set's fingerprint knows of its files: their content, or what a listing shows where they are too many."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from hpcexp.data.digests import Stamp, digests, stamp_of
from hpcexp.data_spec import DataSpec
from hpcexp.errors import DataError

if TYPE_CHECKING:
    from hpcexp.data.source import Source

How: TypeAlias = Literal["auto", "content", "listing"]
"""What is read for a fingerprint: `data.fingerprint`."""
MOST_BYTES = 32 << 30
MOST_FILES = 500_000
"""Up to these, `auto` reads the content: a minute on a local disk, once."""


class Content(NamedTuple):
    """What stands for each file, in their order."""

    digests: list[str]
    """SHA-256 of the bytes; of a listing size and time."""
    trusted: str = ""
    """What is taken for the content: `names, sizes and times of 1,281,167 files (148 GB)`; empty where it was read."""


def content(root: Path, names: Sequence[str], stamps: Sequence[Stamp], how: How) -> Content:
    """What a fingerprint needs of files below `root`. DataError names one that cannot be read."""
    size = sum(stamp.size for stamp in stamps)
    is_small = size <= MOST_BYTES and len(names) <= MOST_FILES
    if how == "content" or (how == "auto" and is_small):
        return Content(digests(root, names, stamps))
    stamped = [f"{stamp.size} {stamp.mtime_ns}" for stamp in stamps]
    return Content(stamped, f"names, sizes and times of {len(names):,} files ({size / 1e9:,.3g} GB)")


class FilesTold(NamedTuple):
    """The files of a source, in their order; of directories all that is below them."""

    paths: list[Path]
    rows: list[int]
    stamps: list[Stamp]
    content: Content


def of_files(source: Source, how: How) -> FilesTold:
    """The files that a source names, and what stands for the content of each."""
    rows: dict[Path, int] = {}
    stamps: list[Stamp] = []
    try:
        for named in source.files():
            for number, path in enumerate(_files_below(Path(named.path))):
                if path not in rows:
                    stamps.append(stamp_of(path.stat()))
                    rows[path] = 0 if number else named.rows
    except OSError as e:
        raise DataError(f"{e.filename} cannot be read: {e.strerror}.\nFix: put it there, or leave it out.") from e
    if not rows:
        return FilesTold([], [], [], Content([]))
    root = Path(os.path.commonpath([path.absolute().parent for path in rows]))
    names = [os.path.relpath(path.absolute(), root) for path in rows]
    return FilesTold(list(rows), list(rows.values()), stamps, content(root, names, stamps, how))


def _files_below(path: Path) -> Iterable[Path]:
    """The file itself; the files of a directory and those below it, in the order of their paths."""
    if not path.is_dir():
        return (path,)
    return sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)


def with_content(facts: DataSpec, source: Source, how: How) -> DataSpec:
    """The facts, their fingerprint also of the content of the files that the source names.

    Whatever a source of the user's own makes its fingerprint of, other bytes in its files are other data.
    """
    found = of_files(source, how).content
    if not found.digests:
        return facts
    whole = hashlib.sha256("\n".join([facts.fingerprint, *found.digests]).encode())
    return replace(facts, fingerprint=whole.hexdigest(), trusted=found.trusted)


def printable(name: str) -> str:
    """The name of a file, which need not be UTF-8, as a text."""
    return os.fsencode(name).decode(errors="backslashreplace")
