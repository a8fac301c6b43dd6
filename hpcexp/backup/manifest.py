"""What a snapshot holds: each file with its size, time, mode and checksum. A snapshot without this is half a one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any

from msgspec import Meta

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.documents import convert, decode
from hpcexp.files.untrusted import UnusableFileError, kind_problem, names_problem, open_below

NAME = "manifest.json"
_VERSION = 1
_MAX_BYTES = 1 << 30
"""Of a manifest: about 300 bytes a file."""


_Mode = Annotated[int, Meta(ge=0, le=0o7777)]


@dataclass(frozen=True)
class SnapshotEntry:
    """A file of a snapshot."""

    size: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    mtime_ns: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    mode: _Mode
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Tree:
    """A directory that was copied, and the database that belongs to it."""

    root: Annotated[str, Meta(pattern="^/")]
    store: str
    """URI without its password."""
    dump: str | None
    """File of the snapshot that holds the database; None where there was none."""
    mode: _Mode = 0o700
    """Of the directory itself."""


@dataclass
class Manifest:
    """A snapshot's content."""

    created: float
    host: str
    trees: dict[str, Tree] = field(default_factory=dict)
    """`runs`, `server` → where that came from."""
    files: dict[str, SnapshotEntry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def save(manifest: Manifest, snapshot: Path) -> None:
    """Write it, with the checksum of itself."""
    content = {"version": _VERSION, **asdict(manifest)}
    write_atomic(snapshot / NAME, json.dumps({"sha256": _digest(content), **content}, indent=1))


def load(snapshot: Path) -> Manifest:
    """The content of a snapshot; RunError where it is none, or damaged."""
    try:
        with open_below(snapshot, PurePath(NAME)) as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        content = decode(text.decode(), dict[str, Any])
        digest = content.pop("sha256")
        if digest != _digest(content) or content.pop("version") != _VERSION:
            raise ValueError("its checksum is another")
        manifest = convert(content, Manifest)
        _check_names(manifest)
    except FileNotFoundError as e:
        raise RunError(f"{snapshot} is no snapshot of `hpcexp backup`: it has no {NAME}.\nFix: another one.") from e
    except UnusableFileError as e:
        raise RunError(f"{snapshot / NAME} is damaged: {e.why}.\nFix: an older snapshot by --at NAME.") from e
    except (ValueError, KeyError) as e:
        raise RunError(f"{snapshot / NAME} is damaged: {e}.\nFix: an older snapshot by --at NAME.") from e
    return manifest


def _check_names(manifest: Manifest) -> None:
    """ValueError where what it lists would not be restored into the directories of its trees."""
    if (problem := names_problem(manifest.files)) is not None:
        raise ValueError(problem)
    for name in manifest.files:
        tree, _, rest = name.partition("/")
        if not rest or tree not in manifest.trees:
            raise ValueError(f"the name {name!r} is of no tree")
    for head, one in manifest.trees.items():
        if (dumped := one.dump) is not None and (dumped not in manifest.files or not dumped.startswith(f"{head}/")):
            raise ValueError(f"the database {dumped!r} is none of its files")


def missing(snapshot: Path, manifest: Manifest) -> dict[str, str]:
    """Files that are not there as regular ones of their size, each with what is wrong. Reads no content."""
    found = {}
    for name, entry in manifest.files.items():
        try:
            with open_below(snapshot, PurePath(name)) as file:
                size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                found[name] = f"it has {size:,} bytes instead of {entry.size:,}"
        except (OSError, UnusableFileError) as e:
            found[name] = why_unread(e)
    return found


def why_unread(error: OSError | UnusableFileError) -> str:
    """What keeps a file from being read."""
    return error.why if isinstance(error, UnusableFileError) else str(error.strerror)


def damage(snapshot: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Files that are not as they were written, each with what is wrong."""
    wrong = missing(snapshot, manifest)
    yield from wrong.items()
    for name, entry in manifest.files.items():
        if name in wrong:
            continue
        try:
            with open_below(snapshot, PurePath(name)) as file:
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
            if not is_whole:
                yield name, "its content is another"
        except (OSError, UnusableFileError) as e:
            yield name, why_unread(e)


def is_as_written(file: Path, entry: SnapshotEntry) -> bool:
    """Whether size and time of a snapshot's file are those it was written with, and nobody has disowned it."""
    try:
        now = file.lstat()
    except OSError:
        return False
    is_same = (now.st_size, now.st_mtime_ns) == (entry.size, entry.mtime_ns)
    return is_same and kind_problem(now.st_mode) is None


def disown(file: Path) -> bool:
    """Let no later snapshot link to a file, under whatever name; whether this user may say so."""
    try:
        os.utime(file, ns=(0, 0), follow_symlinks=False)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
