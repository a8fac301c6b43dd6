"""SHA-256 of data files, read once: a file with the inode, size and times of before has the content of before.

What is known of the files below one directory is one file in the user's cache, replaced as a whole. So it needs no
lock, also on a network file system; of two commands that write it at once, the later counts. Whatever is not as this
module writes it is dropped, and the data read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hpcexp.errors import DataError, RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.untrusted import read_bytes

_VERSION = "1"
_MOST_BYTES = 512 << 20
"""Of one file of the cache: three million files of data."""
_MOST_IN_ALL = 1 << 30
_THREADS = 8
_CHUNK = 64
"""Files that a thread takes at a time."""
_TRIES = 3
_SAY_AFTER_S = 3.0


class Stamp(NamedTuple):
    """What of a file changes with its content. Nobody can set `ctime_ns`."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Known(NamedTuple):
    stamp: Stamp
    sha256: str


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file by its stat, or of the file that a link leads to."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def digests(root: Path, names: Sequence[str], stamps: Sequence[Stamp]) -> list[str]:
    """SHA-256 of each of the files below `root`, in their order; DataError names one that cannot be read."""
    remembered, began_ns = Cache(root), time.time_ns()
    known = remembered.load()
    new = [
        name
        for name, stamp in zip(names, stamps, strict=True)
        if (before := known.get(name)) is None or before.stamp != stamp
    ]
    if new:
        kept, read = {name: known[name] for name in set(names).difference(new)}, _read(root, new)
        known = kept | read
        remembered.save(kept | {name: one for name, one in read.items() if _is_settled(one.stamp, began_ns)})
    return [known[name].sha256 for name in names]


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The user's cache of hpcexp: HPCEXP_CACHE, or below XDG_CACHE_HOME; None where there is no home."""
    if own := environment.get("HPCEXP_CACHE"):
        return Path(own).expanduser()
    with contextlib.suppress(RuntimeError):
        return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hpcexp")
    return None


class Cache:
    """What is remembered of the files below a directory."""

    def __init__(self, root: Path) -> None:
        place, where = cache_dir(), os.fsencode(os.path.abspath(root))  # noqa: PTH100 - links are what they lead to
        name = f"data-{hashlib.sha256(where).hexdigest()[:32]}.json"
        self._file = place and place / name

    def load(self) -> dict[str, _Known]:
        """Name → what it was; empty where nothing is remembered, or somebody else wrote it."""
        if self._file is None:
            return {}
        try:
            if self._file.lstat().st_uid != os.geteuid():
                return {}
            head, _, body = read_bytes(self._file, _MOST_BYTES).partition(b"\n")
            if head.decode(errors="replace") != _head(body):
                return {}
            found = {name: _Known(Stamp(*stamp), digest) for name, (*stamp, digest) in json.loads(body).items()}
            os.utime(self._file)  # the ones that nobody has asked for longest go first
        except (OSError, RunError, ValueError, TypeError, AttributeError, RecursionError):
            return {}
        return found

    def save(self, known: Mapping[str, _Known]) -> None:
        """Remember it. A disk that is full or read-only remembers nothing."""
        if self._file is None:
            return
        entries = {name: [*one.stamp, one.sha256] for name, one in known.items()}
        body = json.dumps(entries, separators=(",", ":")).encode()
        if len(body) > _MOST_BYTES // 2:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._file, _head(body).encode() + b"\n" + body, mode=0o600)
            _make_room(self._file.parent)


def _head(body: bytes) -> str:
    return f"hpcexp-digests {_VERSION} {hashlib.sha256(body).hexdigest()}"


def _is_settled(stamp: Stamp, read_ns: int) -> bool:
    """Whether a file that was read then, or later, cannot have been changed since without another stamp.

    Two changes within one tick of the clock that stamps files have the same time; some file systems count in seconds.
    """
    tick_ns = 2_000_000_000 if stamp.ctime_ns % 1_000_000_000 == 0 else 200_000_000
    return stamp.ctime_ns + tick_ns < read_ns


def _make_room(place: Path) -> None:
    """Remove what was not used for longest, until the rest is within bounds."""
    files = sorted(((file.stat(), file) for file in place.glob("data-*.json")), key=lambda pair: -pair[0].st_mtime)
    total = 0
    for of_file, file in files:
        total += of_file.st_size
        if total > _MOST_IN_ALL:
            file.unlink(missing_ok=True)


def _read(root: Path, names: Sequence[str]) -> dict[str, _Known]:
    """Read files, several at a time: disks and servers answer many questions at once."""
    from concurrent.futures import ThreadPoolExecutor

    chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
    found: dict[str, _Known] = {}
    began, is_announced = time.monotonic(), False
    with ThreadPoolExecutor(min(_THREADS, len(chunks)), "hpcexp-digest") as pool:
        try:
            for number, chunk in enumerate(pool.map(lambda chunk: list(_read_each(root, chunk)), chunks)):
                found.update(chunk)
                if not is_announced and time.monotonic() - began > _SAY_AFTER_S:
                    is_announced = True
                    _say(f"Reading {len(names):,} files of {root}, {number / len(chunks):.0%} so far.")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{text} Later commands read those alone that change.", file=sys.stderr, flush=True)


def _read_each(root: Path, names: Iterable[str]) -> Iterator[tuple[str, _Known]]:
    for name in names:
        yield name, _read_one(root / name)


def _read_one(path: Path) -> _Known:
    """A file as it was at one moment."""
    try:
        for _ in range(_TRIES):
            # A FIFO without a writer would never be opened.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise DataError(f"{path} is no regular file.\nFix: remove it, or replace it by one.")
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if stamp_of(os.fstat(file.fileno())) == stamp_of(before):
                    return _Known(stamp_of(before), digest)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}.\nFix: let it be read, or remove it.") from e
    raise DataError(f"{path} is written to while it is read.\nFix: begin again once it is whole.")
