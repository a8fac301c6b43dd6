"""Copying directories that are written to meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpcexp.backup.manifest import Entry, Manifest, digest_of, is_as_written
from hpcexp.beat import is_probe
from hpcexp.rundir import is_half_written

_CHUNK = 1 << 20
_TRIES = 20
_GROWING = (".jsonl", ".log")
"""Files that are appended to; all others are replaced as a whole."""
_MAGIC = b"SQLite format 3\0"
_BESIDE_SQLITE = ("-wal", "-shm", "-journal")


@dataclass(frozen=True)
class Copier:
    """Puts files into a snapshot and its manifest."""

    snapshot: Path
    manifest: Manifest
    previous: Path | None = None
    """A snapshot whose unchanged files are taken as they are."""
    known: Manifest | None = None
    """What `previous` holds."""
    links: bool = False
    """Link what is replaced as a whole instead of copying it: for a snapshot that lives shortly."""

    def directory(self, source: Path, name: str) -> None:
        """All files below `source` as they stand together at one moment; nothing where it is gone."""
        with ExitStack() as stack:
            for file, opened in _opened_together(source, stack):
                self.opened(file, opened, f"{name}/{file.relative_to(source)}")

    def file(self, source: Path, name: str) -> None:
        """One file; nothing where it is gone."""
        try:
            with source.open("rb") as opened:
                self.opened(source, opened, name)
        except FileNotFoundError:
            return

    def opened(self, source: Path, opened: BinaryIO, name: str) -> None:
        """A file that was opened at `source` and may have been replaced there since."""
        if opened.read(len(_MAGIC)) == _MAGIC:
            self.sqlite(source, name)
            return
        opened.seek(0)
        stat = os.fstat(opened.fileno())
        target = self._place(name)
        before = self.known.files.get(name) if self.known else None
        now = stat.st_size, stat.st_mtime_ns, stat.st_mode & 0o777
        is_known = before is not None and (before.size, before.mtime_ns, before.mode) == now
        if before and is_known and self._is_taken_over(name, before):
            self.manifest.files[name] = before
            return
        if self.links and source.suffix not in _GROWING and _linked(source, target, stat.st_ino):
            digest = digest_of(target)
        else:
            digest = _copied(opened, target, stat)
        self._enter(name, digest)

    def sqlite(self, source: Path, name: str) -> None:
        """A SQLite database as of one transaction, while others write to it."""
        target = self.made(name)
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
            [mode] = connection.execute("PRAGMA journal_mode").fetchone()
        with closing(sqlite3.connect(target)) as copy:
            copy.execute(f"PRAGMA journal_mode={mode}")  # which a copy does not take over
        os.chmod(target, source.stat().st_mode & 0o777)
        self._enter(name, digest_of(target))

    def made(self, name: str) -> Path:
        """An empty file of one's own, to be written and then taken into the manifest by `enter`."""
        target = self._place(name)
        target.touch(mode=0o600)
        return target

    def enter(self, name: str) -> None:
        """Take a file that was written to `made` into the manifest."""
        self._enter(name, digest_of(self.snapshot / name))

    def _is_taken_over(self, name: str, before: Entry) -> bool:
        """Whether this is the file of the previous snapshot now, too."""
        if self.previous is None or not is_as_written(self.previous / name, before):
            return False
        return _linked(self.previous / name, self.snapshot / name)

    def _enter(self, name: str, digest: str) -> None:
        stat = (self.snapshot / name).stat()
        self.manifest.files[name] = Entry(stat.st_size, stat.st_mtime_ns, stat.st_mode & 0o777, digest)

    def _place(self, name: str) -> Path:
        target = self.snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def files_below(source: Path, *, deep: bool = True) -> Iterator[Path]:
    """Every file that is kept: no locks, no half-written ones, nothing that belongs to a database beside it.

    `deep`: those in folders, too.
    """
    for folder, folders, names in os.walk(source):
        if not deep:
            folders.clear()
        for name in sorted(names):
            file = Path(folder, name)
            if not (name.endswith((".lock", *_BESIDE_SQLITE)) or is_half_written(file) or is_probe(file)):
                yield file


def _opened_together(source: Path, stack: ExitStack) -> list[tuple[Path, BinaryIO]]:
    """The files of a directory, opened so that none was replaced between the first and the last of them.

    What is appended to comes last, so that it is not behind what was written after it.
    """
    for _ in range(_TRIES):
        attempt = stack.enter_context(ExitStack())
        files: list[tuple[Path, BinaryIO]] = []
        for file in sorted(files_below(source), key=lambda f: f.suffix in _GROWING):
            try:
                files.append((file, attempt.enter_context(file.open("rb"))))
            except FileNotFoundError:
                continue
        if _is_still_there(source, files):
            return files
        attempt.close()
    return files


def _is_still_there(source: Path, files: list[tuple[Path, BinaryIO]]) -> bool:
    try:
        now = {file: file.stat().st_ino for file in files_below(source)}
    except FileNotFoundError:
        return False
    return now == {file: os.fstat(opened.fileno()).st_ino for file, opened in files}


def _linked(source: Path, target: Path, inode: int | None = None) -> bool:
    """Whether `target` is the file `source` now, by a second name, and that one the opened `inode`."""
    try:
        os.link(source, target)
    except OSError:
        return False  # gone, another file system, or more names than that allows
    if inode in (None, target.stat().st_ino):
        return True
    target.unlink()
    return False


def _copied(opened: BinaryIO, target: Path, stat: os.stat_result) -> str:
    """Copy what the file has now, not what is appended meanwhile; its digest."""
    digest, left = hashlib.sha256(), stat.st_size
    target.touch(mode=0o600)
    with target.open("wb") as file:
        while left and (chunk := opened.read(min(left, _CHUNK))):
            file.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    os.chmod(target, stat.st_mode & 0o777)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return digest.hexdigest()


def restored(source: Path, target: Path, entry: Entry) -> bool:
    """Copy a file of a snapshot to where it belongs; whether it is what the manifest says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch(mode=0o600)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return False
    os.chmod(target, entry.mode)
    os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
    return digest_of(target) == entry.sha256
