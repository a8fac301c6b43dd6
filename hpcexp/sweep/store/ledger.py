"""The jobs of a sweep, numbered once: `jobs.jsonl`, a line for each time that a job is planned to run somewhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.documents import decode
from hpcexp.files.untrusted import open_append, open_regular
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.sweep import MAX_LEDGER_BYTES, LedgerLine
from hpcexp.sweep.store.claims import Claims

_LOCK = "ledger"


@dataclass(frozen=True)
class LedgerEntry:
    """A job as the ledger has it."""

    job: int
    """Its number, from 1."""
    overrides: tuple[str, ...]
    """The overrides that make it another job than its neighbours."""
    base: tuple[str, ...]
    """Overrides that the jobs of its time had in common."""
    trial: int | None
    """Of an Optuna study."""
    signature: str
    run: str
    """Its run directory."""

    @property
    def key(self) -> tuple[tuple[str, ...], int | None]:
        """What a job is recognised by: a search may ask for a point twice, as two trials."""
        return self.overrides, self.trial


class Ledger:
    """The file, and what this process has read of it."""

    def __init__(self, directory: Path, claims: Claims) -> None:
        self.path, self._root = SweepDir(directory).jobs, SweepDir(directory).root
        self._claims = claims
        self._offset = 0
        self._entries: dict[int, LedgerEntry] = {}

    def entries(self) -> Mapping[int, LedgerEntry]:
        """Job number → its newest entry."""
        for entry in self._new():
            self._entries[entry.job] = entry
        return self._entries

    def enter(self, wanted: Sequence[LedgerEntry]) -> list[LedgerEntry]:
        """The entries with their numbers: the old number of a known job, the next number otherwise.

        Safe beside other drivers that do the same. Entries that the ledger has are not written again.
        """
        with self._claims.holding(_LOCK):
            while True:
                numbered, new = self._numbered(wanted)
                if self._append(new):
                    return numbered

    def _numbered(self, wanted: Sequence[LedgerEntry]) -> tuple[list[LedgerEntry], list[LedgerEntry]]:
        """The entries with their numbers, and those that the ledger lacks."""
        known = {entry.key: entry for entry in self.entries().values()}
        numbered, new = [], []
        free = max(self._entries, default=0) + 1
        for want in wanted:
            before = known.get(want.key)
            entry = replace(want, job=before.job if before else free)
            free += before is None
            known[entry.key] = entry
            numbered.append(entry)
            if entry != before:
                new.append(entry)
        return numbered, new

    def _append(self, entries: Iterable[LedgerEntry]) -> bool:
        """Write entries after all that is known; False where another driver has written meanwhile.

        A driver that was suspended until others broke its lock must not overwrite their entries.
        """
        now = round(time.time(), 3)
        rows = ({**asdict(entry), "run": self._below(entry.run), "t": now} for entry in entries)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)
        if not text:
            return True
        fd = open_append(self.path)
        try:
            torn = os.pread(fd, max(0, os.fstat(fd).st_size - self._offset), self._offset)
            if b"\n" in torn:
                return False
            os.ftruncate(fd, self._offset)  # a line that a dead driver left torn
            os.write(fd, text.encode())
            os.fsync(fd)
            return True
        except OSError as e:
            raise RunError(f"{self.path} cannot be written: {e.strerror}.\nFix: make room on that disk.") from e
        finally:
            os.close(fd)

    def _new(self) -> Iterator[LedgerEntry]:
        """Read what was appended since. An incomplete last line is left for later."""
        try:
            with open_regular(self.path) as file:
                file.seek(self._offset)
                data = file.read(MAX_LEDGER_BYTES)
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            yield self._entry(line, f"{self.path}, line {number}")

    def _below(self, run: str) -> str:
        """The run directory as the file has it: within the directory of runs, so that this can be moved as a whole."""
        return str(Path(run).relative_to(self._root)) if run and Path(run).is_relative_to(self._root) else run

    def _entry(self, line: bytes, where: str) -> LedgerEntry:
        try:
            known = decode(line, LedgerLine)
        except ValueError as e:
            raise RunError(f"{where} is damaged: {e}.\nFix: remove that line; its run directory stays.") from e
        run = known.run and str(self._root / known.run)
        return LedgerEntry(known.job, tuple(known.overrides), tuple(known.base), known.trial, known.signature, run)
