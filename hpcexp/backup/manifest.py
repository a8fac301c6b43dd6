"""What a snapshot holds: each file with its size, time, mode and checksum. A snapshot without this is half a one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.rundir import write_atomic

NAME = "manifest.json"
_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A file of a snapshot."""

    size: int
    mtime_ns: int
    mode: int
    sha256: str


@dataclass(frozen=True)
class Tree:
    """A directory that was copied, and the database that belongs to it."""

    root: str
    store: str
    """URI without its password."""
    dump: str | None
    """File of the snapshot that holds the database; None where there was none."""
    mode: int = 0o700
    """Of the directory itself."""


@dataclass
class Manifest:
    """A snapshot's content."""

    created: float
    host: str
    trees: dict[str, Tree] = field(default_factory=dict)
    """`runs`, `server` → where that came from."""
    files: dict[str, Entry] = field(default_factory=dict)

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
        content = json.loads((snapshot / NAME).read_text())
        digest = content.pop("sha256")
        if digest != _digest(content) or content.pop("version") != _VERSION:
            raise ValueError("its checksum is another")
        trees = {name: Tree(**tree) for name, tree in content["trees"].items()}
        files = {path: Entry(**entry) for path, entry in content["files"].items()}
        return Manifest(content["created"], content["host"], trees, files)
    except FileNotFoundError as e:
        raise RunError(f"{snapshot} is no snapshot of `hpcexp backup`: it has no {NAME}.\nFix: another one.") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunError(f"{snapshot / NAME} is damaged: {e}.\nFix: an older snapshot by --at NAME.") from e


def damage(snapshot: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Files that are not as they were written, each with what is wrong."""
    for name, entry in manifest.files.items():
        try:
            if digest_of(snapshot / name) != entry.sha256:
                yield name, "its content is another"
        except OSError as e:
            yield name, str(e.strerror)


def is_as_written(file: Path, entry: Entry) -> bool:
    """Whether size and time of a snapshot's file are those it was written with, and nobody has disowned it."""
    try:
        stat = file.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.mtime_ns)


def disown(file: Path) -> bool:
    """Let no later snapshot link to a file, under whatever name; whether this user may say so."""
    try:
        os.utime(file, ns=(0, 0))
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
