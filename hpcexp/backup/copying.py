"""Copying directories that are written to meanwhile."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

from hpcexp.backup.manifest import Manifest, SnapshotEntry, digest_of, is_as_written
from hpcexp.files.atomic import is_half_written
from hpcexp.files.databases import reading
from hpcexp.files.untrusted import (
    UnusableFileError,
    holes_problem,
    name_problem,
    open_below,
    open_regular,
    regular_files,
    safe_mode,
)
from hpcexp.runs.beat import is_probe

_CHUNK = 1 << 20
_TRIES = 20
_GROWING = (".jsonl", ".log")
"""Files that are appended to; all others are replaced as a whole."""
_MAGIC = b"SQLite format 3\0"
_BESIDE_SQLITE = ("-wal", "-shm", "-journal")

LeftOut = Callable[[Path, str], None]
"""Gets what is not kept, and why."""


@dataclass(frozen=True)
class Copier:
    """Puts files into a snapshot and its manifest."""

    snapshot: Path
    manifest: Manifest
    previous: Path | None = None
    """A snapshot whose unchanged files are taken as they are."""
    known: Manifest | None = None
    """What `previous` holds."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What is not kept → why: links, FIFOs, names that could not be restored."""
    links: bool = False
    """Link what is replaced as a whole instead of copying it: for a snapshot that lives shortly."""

    def directory(self, source: Path, name: str) -> None:
        """All files below `source` as they stand together at one moment; nothing where it is gone."""
        with ExitStack() as stack:
            for file, opened in _opened_together(source, stack, self.leave_out):
                self.opened(file, opened, f"{name}/{file.relative_to(source)}")

    def file(self, source: Path, name: str) -> None:
        """One file; nothing where it is gone."""
        try:
            with open_regular(source) as opened:
                self.opened(source, opened, name)
        except FileNotFoundError:
            return
        except UnusableFileError as e:
            self.leave_out(source, e.why)

    def leave_out(self, source: Path, why: str) -> None:
        """Note what the snapshot lacks."""
        self.left_out[str(source)] = why

    def opened(self, source: Path, opened: BinaryIO, name: str) -> None:
        """A file that was opened at `source` and may have been replaced there since."""
        if (problem := name_problem(name)) is not None:
            self.leave_out(source, problem)
            return
        if (problem := holes_problem(os.fstat(opened.fileno()))) is not None:
            self.leave_out(source, problem)
            return
        if opened.read(len(_MAGIC)) == _MAGIC and self._is_database(source, name):
            return
        opened.seek(0)
        now = os.fstat(opened.fileno())
        target = self._place(name)
        before = self.known.files.get(name) if self.known else None
        seen = now.st_size, now.st_mtime_ns, now.st_mode & 0o777
        is_known = before is not None and (before.size, before.mtime_ns, before.mode) == seen
        if before and is_known and self._is_taken_over(name, before):
            self.manifest.files[name] = before
            return
        if self.links and source.suffix not in _GROWING and _linked(source, target, now.st_ino):
            digest = digest_of(target)
        else:
            digest = _copied(opened, target, now)
        self._enter(name, digest)

    def sqlite(self, source: Path, name: str) -> None:
        """A SQLite database as of one transaction, while others write to it."""
        with reading(source, timeout_s=60) as connection:
            target = self.made(name)
            connection.execute("VACUUM INTO ?", (str(target),))
            [mode] = connection.execute("PRAGMA journal_mode").fetchone()
        with closing(sqlite3.connect(target)) as copy:
            copy.execute(f"PRAGMA journal_mode={mode}")  # which a copy does not take over
        os.chmod(target, source.stat().st_mode & 0o777)
        self._enter(name, digest_of(target))

    def _is_database(self, source: Path, name: str) -> bool:
        """`sqlite`, unless the file only begins like a database: then it is copied like any other."""
        try:
            self.sqlite(source, name)
        except sqlite3.DatabaseError as e:
            if getattr(e, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            (self.snapshot / name).unlink(missing_ok=True)
            return False
        return True

    def made(self, name: str) -> Path:
        """An empty file of one's own, to be written and then taken into the manifest by `enter`."""
        target = self._place(name)
        target.touch(mode=0o600)
        return target

    def enter(self, name: str) -> None:
        """Take a file that was written to `made` into the manifest."""
        self._enter(name, digest_of(self.snapshot / name))

    def _is_taken_over(self, name: str, before: SnapshotEntry) -> bool:
        """Whether this is the file of the previous snapshot now, too."""
        if self.previous is None or not is_as_written(self.previous / name, before):
            return False
        return _linked(self.previous / name, self.snapshot / name)

    def _enter(self, name: str, digest: str) -> None:
        now = (self.snapshot / name).stat()
        self.manifest.files[name] = SnapshotEntry(now.st_size, now.st_mtime_ns, now.st_mode & 0o777, digest)

    def _place(self, name: str) -> Path:
        target = self.snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def files_below(source: Path, left_out: LeftOut, *, deep: bool = True) -> Iterator[Path]:
    """Every file that is kept: no locks, no half-written ones, nothing that belongs to a database beside it.

    `deep`: those in folders, too. `left_out` gets links and the like.
    """
    for file in regular_files(source, left_out, deep=deep):
        if not (file.name.endswith((".lock", *_BESIDE_SQLITE)) or is_half_written(file) or is_probe(file)):
            yield file


def _opened_together(source: Path, stack: ExitStack, left_out: LeftOut) -> list[tuple[Path, BinaryIO]]:
    """The files of a directory, opened so that none was replaced between the first and the last of them.

    What is appended to comes last, so that it is not behind what was written after it.
    """
    problems: dict[Path, str] = {}
    for is_last in [False] * (_TRIES - 1) + [True]:
        attempt = stack.enter_context(ExitStack())
        files: list[tuple[Path, BinaryIO]] = []
        problems.clear()
        for file in sorted(files_below(source, problems.__setitem__), key=lambda f: f.suffix in _GROWING):
            try:
                files.append((file, attempt.enter_context(open_below(source, file.relative_to(source)))))
            except FileNotFoundError:
                continue
            except UnusableFileError as e:
                problems[file] = e.why
        if is_last or _is_still_there(source, files, problems):
            break
        attempt.close()
    for file, why in problems.items():
        left_out(file, why)
    return files


def _is_still_there(source: Path, files: list[tuple[Path, BinaryIO]], problems: Mapping[Path, str]) -> bool:
    found = [file for file in files_below(source, lambda _, __: None) if file not in problems]
    try:
        now = {file: file.lstat().st_ino for file in found}
    except FileNotFoundError:
        return False
    return now == {file: os.fstat(opened.fileno()).st_ino for file, opened in files}


def _linked(source: Path, target: Path, inode: int | None = None) -> bool:
    """Whether `target` is the file `source` now, by a second name, and that one the opened `inode`."""
    try:
        os.link(source, target)
    except OSError:
        return False  # gone, another file system, or more names than that allows
    now = target.lstat()
    if stat.S_ISREG(now.st_mode) and inode in (None, now.st_ino):
        return True
    target.unlink()
    return False


def _copied(opened: BinaryIO, target: Path, now: os.stat_result) -> str:
    """Copy what the file has now, not what is appended meanwhile; its digest."""
    digest = _written(opened, target, now.st_size)
    os.chmod(target, now.st_mode & 0o777)
    os.utime(target, ns=(now.st_atime_ns, now.st_mtime_ns))
    return digest


def restored(snapshot: Path, name: str, target: Path, entry: SnapshotEntry) -> bool:
    """Copy a file of a snapshot to `target`, where nothing is; whether it is what the manifest says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_below(snapshot, PurePath(name)) as opened:
            digest = _written(opened, target, entry.size)
    except (FileNotFoundError, UnusableFileError):
        return False
    os.chmod(target, safe_mode(entry.mode) | stat.S_IRUSR)
    os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
    return digest == entry.sha256


def _written(opened: BinaryIO, target: Path, size: int) -> str:
    """Put the next `size` bytes into a new file for its owner alone; their digest."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while size and (chunk := opened.read(min(size, _CHUNK))):
            file.write(chunk)
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()
