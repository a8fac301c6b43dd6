"""Stores what a rank logs beside metrics: files first, then a line of the index for each."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from hpcexp.errors import RunError
from hpcexp.files.atomic import fsync, write_atomic
from hpcexp.files.untrusted import open_append
from hpcexp.media.entries import FOLDERS, Entry, Kind, index_of, read_entries
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal
from hpcexp.text.key_names import KeyTable, flat, folded

_STEP_DIGITS = 8
_PATHS = ("artifact", "rows")
"""Kinds whose names are paths among the artifacts."""
OWN_ARTIFACTS = frozenset(
    ("plan.yaml", "summary.json", "confusion.json", "overrides.txt", "renamed.json", "lineage", "logs", "media")
)
"""Files and folders of hpcexp's among a run's artifacts. Its `plots` are sent last, and give way."""


class Content(NamedTuple):
    """A file to be."""

    data: bytes
    suffix: str
    """With its dot; empty for none."""


class Recorder:
    """What a rank has logged, in `media/` of its run directory.

    What a resumed training logs again replaces what it logged before, and keeps its time. Several values of one name
    and step are all kept. A disk that refuses is reported once on stderr and never raised.
    """

    def __init__(self, run: RunDir | None, rank: int, step: Callable[[], int], journal: Journal | None = None) -> None:
        """`run`: None where nothing is to be recorded. `step`: the one that training is at. `journal`: of rank 0."""
        self.rank, self.step, self.journal = rank, step, journal
        self._media = None if run is None else run.media
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._known: dict[tuple[str, str, int, int], Entry] = {}
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._keys: dict[str, KeyTable] = {}
        self._fd: int | None = None
        self._unsynced: set[Path] = set()
        self._num_lost = 0
        if self._media is not None:
            entries, _ = read_entries(index_of(self._media, rank))
            self._known = {entry.key: entry for entry in entries}
            for entry in entries:
                self._key(entry.k, entry.n)

    @property
    def leads(self) -> bool:
        """Whether what is logged once for all ranks is logged by this one."""
        return self.rank == 0

    def check_process(self, word: str) -> None:
        """RunError in another process than that of the rank."""
        if os.getpid() != self._pid:
            raise RunError(
                f"{word} was called in a process that the training has started, such as a worker of a data loader.\n"
                "Fix: return the value to the training process, and log it there."
            )

    def put(self, kind: Kind, name: str, contents: Iterable[Content], step: int | None = None) -> None:
        """Store a file for each of the contents, under the name and step."""
        at = self.step() if step is None else int(step)
        if at < 0:
            raise ValueError(f"{kind} {name!r}: step={at} is negative.")
        with self._lock:
            for content in contents:
                number = self._counts[kind, name, at]
                self._counts[kind, name, at] += 1
                self._store(kind, name, at, number, content)

    def artifact(self, path: str | Path, data: bytes) -> None:
        """Store a file that is to have this path among the run's artifacts."""
        path = str(path)
        with self._lock:
            file = f"{FOLDERS['artifact']}/{self._key('artifact', path)}"
            self._write(self._dated(Entry(t=_now_ms(), k="artifact", n=path, f=file)), data)

    def artifact_tree(self, path: Path, folder: str | None = None, *, is_named: bool) -> None:
        """Store a file, or all files below a folder, below `folder`. `is_named`: a folder's name is part of the paths.

        FileNotFoundError where there is nothing.
        """
        if path.is_dir():
            base = path.parent if is_named else path
            files = sorted(file for file in path.rglob("*") if file.is_file())
        else:
            base, files = path.parent, [path]
        for file in files:
            self.artifact(str(PurePosixPath(folder or "", file.relative_to(base))), file.read_bytes())

    def metrics(self, values: Mapping[str, float], step: int | None = None, time_ms: int | None = None) -> None:
        """Add values to the journal; nothing on ranks other than 0."""
        if self.journal is not None and values:
            at = self.step() if step is None else int(step)
            self.journal.append([(at, dict(values))], None if time_ms is None else [time_ms])

    def note(self, kind: Kind, name: str, value: str) -> str:
        """Store a parameter or a tag; the value that it has now: a parameter's first stays."""
        with self._lock:
            before = self._known.get((kind, name, 0, 0))
            if before is not None and (kind == "param" or before.v == value):
                return before.v
            self._append(Entry(t=_now_ms(), k=kind, n=name, v=value))
            return value

    def notes(self, kind: Kind) -> dict[str, str]:
        """All parameters or tags."""
        return {entry.n: entry.v for entry in self._known.values() if entry.k == kind}

    def sync(self) -> None:
        """Have everything on the disk: a checkpoint must not be newer."""
        with self._lock:
            paths, self._unsynced = self._unsynced, set()
        for path in paths:
            with contextlib.suppress(OSError):
                fsync(path)
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)

    def close(self) -> None:
        """Sync, report what was lost, and let go of the index."""
        self.sync()
        if self._num_lost > 1:
            say(f"ERROR: {self._num_lost} things that were logged could not be written.")
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _key(self, kind: Kind, name: str) -> str:
        """What a name is called in file names: the same in every attempt."""
        if kind not in _PATHS:
            return self._keys.setdefault(kind, KeyTable())[name]
        return self._keys.setdefault("artifact", KeyTable(are_files=True))[_without_ours(name)]

    def _store(self, kind: Kind, name: str, step: int, number: int, content: Content) -> None:
        number_text, rank_text = f"-{number}" if number else "", f"-rank-{self.rank}" if self.rank else ""
        file = f"{step:0{_STEP_DIGITS}d}{number_text}{rank_text}{content.suffix}"
        path = f"{FOLDERS[kind]}/{flat(self._key(kind, name))}/{file}"
        entry = Entry(t=_now_ms(), k=kind, n=name, s=step, i=number, f=path)
        self._write(self._dated(entry), content.data)

    def _dated(self, entry: Entry) -> Entry:
        """With the time of the entry that it replaces."""
        before = self._known.get(entry.key)
        return entry if before is None else msgspec.structs.replace(entry, t=before.t)

    def _write(self, entry: Entry, data: bytes) -> None:
        if self._media is None:
            return
        path = self._media / entry.f
        try:
            if self._known.get(entry.key) == entry and path.is_file() and path.read_bytes() == data:
                return
            write_atomic(path, data, is_durable=False)
            self._unsynced |= {path, path.parent}
        except OSError as e:
            self._complain(path, e)
            return
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        if self._media is None:
            return
        index = index_of(self._media, self.rank)
        try:
            if self._fd is None:
                self._media.mkdir(parents=True, exist_ok=True)
                self._fd = open_append(index, 0o644)
                _end_line(self._fd)
            size = os.fstat(self._fd).st_size
            line = msgspec.json.encode(entry) + b"\n"
            if os.write(self._fd, line) < len(line):
                os.ftruncate(self._fd, size)
                raise OSError(28, os.strerror(28))
        except OSError as e:
            self._complain(index, e)
            return
        self._known[entry.key] = entry

    def _complain(self, path: Path, error: OSError) -> None:
        self._num_lost += 1
        if self._num_lost == 1:
            say(
                f"ERROR: {path} cannot be written: {error.strerror or error}.\n"
                "Training continues without what could not be stored.\nFix: make room on that disk."
            )


def _without_ours(path: str) -> str:
    """Where an artifact goes: not to where hpcexp has files of its own."""
    first = folded(path.strip("/").partition("/")[0])
    return f"user/{path.lstrip('/')}" if first in OWN_ARTIFACTS else path


def _end_line(fd: int) -> None:
    """Have a line that a killed process has torn end."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_SAID: set[str] = set()


def say_once(text: str) -> None:
    """Write a warning to the rank's log, unless it has been written."""
    if text not in _SAID:
        _SAID.add(text)
        say(f"WARNING: {text}.")


def say(text: str) -> None:
    """Write to the rank's log."""
    with contextlib.suppress(OSError):  # the log may lie on the same disk
        print(text, file=sys.stderr, flush=True)
