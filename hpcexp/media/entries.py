"""The index of what a rank has logged: `media/rank-N.jsonl`, one JSON object a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hpcexp.files.untrusted import UnusableFileError, lines_of, open_regular

Kind = Literal["image", "figure", "audio", "text", "table", "rows", "histogram", "file", "artifact", "param", "tag"]
FOLDERS: dict[Kind, str] = {
    "image": "images",
    "figure": "figures",
    "audio": "audio",
    "text": "text",
    "table": "tables",
    "rows": "rows",
    "histogram": "histograms",
    "file": "files",
    "artifact": "artifacts",
}
"""Kind → folder below `media/`. Parameters and tags have no files.

`rows` are those of a table that MLflow's `log_table` adds to: its path among the artifacts is their name.
"""
_MAX_TIME_MS = 10**13
_MAX_STEP = 2**63 - 1
_INDEX = re.compile(r"rank-(\d+)\.jsonl")


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line. A later one of the same kind, name, step and number replaces it."""

    t: Annotated[int, Meta(ge=0, le=_MAX_TIME_MS)]
    """When it was logged first, in unix milliseconds."""
    k: Kind
    n: str
    """Name; of an artifact its path."""
    s: Annotated[int, Meta(ge=0, le=_MAX_STEP)] = 0
    """Step."""
    i: Annotated[int, Meta(ge=0, le=_MAX_STEP)] = 0
    """Which one of those of the same name and step, from 0."""
    f: str = ""
    """Its file, below `media/`."""
    v: str = ""
    """Value of a parameter or tag."""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """The same for an entry and those that replace it."""
        return self.k, self.n, self.s, self.i


_decode = msgspec.json.Decoder(Entry).decode


def index_of(media: Path, rank: int) -> Path:
    """The index of a rank."""
    return media / f"rank-{rank}.jsonl"


def indexes(media: Path) -> dict[int, Path]:
    """Rank → index, of those that have logged something, in their order."""
    found = {int(match[1]): path for path in media.glob("rank-*.jsonl") if (match := _INDEX.fullmatch(path.name))}
    return dict(sorted(found.items()))


def read_entries(index: Path, offset: int = 0, limit: int | None = None) -> tuple[list[Entry], int]:
    """Entries from byte `offset` on, at most `limit`, and the offset to continue from.

    A last line without its end is left for the next call; a line that is none is passed over.
    """
    entries: list[Entry] = []
    for entry, end in _from(index, offset):
        if limit is not None and len(entries) >= limit:
            break
        offset = end
        entries += [] if entry is None else [entry]
    return entries, offset


def _from(index: Path, offset: int) -> Iterator[tuple[Entry | None, int]]:
    try:
        file = open_regular(index)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in lines_of(file):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield _decode(line), offset
            except (msgspec.DecodeError, UnusableFileError):
                yield None, offset
