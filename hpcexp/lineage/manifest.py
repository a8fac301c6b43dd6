"""The seals of a run: at the end of each attempt the digests of all its files, each record with the hash of the last.

`lineage/manifest.jsonl` has a record a line. Whoever changes a file afterwards would have to change the record, and
with it every later one; the hash of the last is also in MLflow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.documents import decode, plain
from hpcexp.files.untrusted import read_text, sha256_of
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import checksum, is_intact, read_checksum, read_note
from hpcexp.runs.records.files import read_or_none
from hpcexp.runs.records.lineage import Seal, SealEntry
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState, Status

MANIFEST = "manifest.jsonl"
_READ_LIMIT = 64 << 20
"""Checkpoints above this many bytes are compared by the checksum that they were written with."""
MAX_MANIFEST_BYTES = 256 << 20
"""A record has about 100 bytes for each file of the run."""
_NOT_OURS = ("plots", "export", "launch/", "mlflow.json", "status.json", "logs/sync.log", f"lineage/{MANIFEST}")
"""What comes after the end of an attempt, or changes then. Of the status the record has what counts."""


def seal(run: RunDir, status: Status, without: Iterable[Path] = ()) -> str:
    """Add the record of an attempt that ends with `status`, and give its hash. `without`: files that are to go."""
    lines = _lines(run.lineage)
    previous = last_record(run.lineage).sha256
    gone = set(without)
    left = [path for path in _files(run) if gone.isdisjoint((path, *path.parents))]
    files = {str(path.relative_to(run.path)): digest_of(path, run) for path in left}
    record = {"attempt": status.attempt, "status": plain(status), "previous": previous, "files": files}
    record["sha256"] = _hash(record)
    write_atomic(run.lineage / MANIFEST, "".join(f"{line}\n" for line in [*lines, json.dumps(record, sort_keys=True)]))
    return str(record["sha256"])


def digest_of(path: Path, run: RunDir) -> dict[str, Any]:
    """Size and SHA-256 of a file; of a big checkpoint the CRC-32 that was worked out when it was written.

    Of a link, which is not followed, those of where it leads.
    """
    if path.is_symlink():
        target = os.fsencode(os.readlink(path))  # noqa: PTH115 - as it is written
        return {"bytes": len(target), "sha256": hashlib.sha256(b"link to " + target).hexdigest()}
    size = path.stat().st_size
    if size <= _READ_LIMIT or run.checkpoints not in path.parents:
        return {"bytes": size, "sha256": sha256_of(path)}
    best = read_summary(run).best
    if path == run.best and best and best.sha256 and best.bytes == size:
        return {"bytes": size, "sha256": best.sha256}
    if (crc := read_checksum(path)) is not None:
        return {"bytes": size, "crc32": crc}
    for whole in (run.last, run.previous):
        note = read_note(whole)
        beside = note.beside if note else {}
        if (name := str(path.relative_to(run.checkpoints))) in beside:
            return {"bytes": size, "crc32": beside[name][1], "is_part": True}
    return {"bytes": size, "sha256": sha256_of(path)}


def differences(run: RunDir) -> list[tuple[str, str]]:
    """What is otherwise than at the end of the last attempt: `changed`, `added`, `removed`, and what.

    RunError where nothing can be compared with.
    """
    lines, status = _lines(run.lineage), read_or_none(run.status, Status)
    if not lines:
        return [("removed", _lost_seals(run, status))]
    records, found = _records(lines)
    if not records:
        return found
    last = records[-1]
    if status is None:
        found.append(("removed", "status.json"))
    elif last.attempt != status.attempt:
        found.append(("unsealed", _unsealed(last, status)))
    elif last.status != status:
        then, now = plain(last.status), plain(status)
        keys = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
        changes = ", ".join(f"{key} {then.get(key)} → {now.get(key)}" for key in keys)
        found.append(("changed", f"status.json: {changes}"))
    return found + list(_of_files(run, last.files))


def last_record(lineage: Path) -> Seal:
    """The record of the last attempt; one of defaults where there is none, or it is damaged."""
    lines = _lines(lineage)
    return (_record(lines[-1]) if lines else None) or Seal()


def _of_files(run: RunDir, recorded: Mapping[str, SealEntry]) -> Iterator[tuple[str, str]]:
    present = {str(path.relative_to(run.path)): path for path in _files(run)}
    for name in sorted({*recorded, *present}):
        if name not in present:
            yield "removed", name
        elif name not in recorded:
            yield "added", name
        elif difference := _differs(present[name], recorded[name], run):
            yield "changed", f"{name}: {difference}"


def _differs(path: Path, recorded: SealEntry, run: RunDir) -> str:
    """How a file differs from what was recorded; empty where it does not."""
    if path.is_symlink():
        return "" if digest_of(path, run)["sha256"] == recorded.sha256 else "it is a link"
    size = path.stat().st_size
    if size != recorded.bytes:
        return f"{recorded.bytes:,} → {size:,} bytes"
    if recorded.sha256 is not None:
        now = sha256_of(path)
        return "" if now == recorded.sha256 else f"SHA-256 {recorded.sha256[:12]} → {now[:12]}"
    if recorded.is_part:
        return "" if checksum(path, size) == recorded.crc32 else "its checksum differs"
    is_same = read_checksum(path) == recorded.crc32 and is_intact(path, alone=True)
    return "" if is_same else "its checksum differs"


def _records(lines: list[str]) -> tuple[list[Seal], list[tuple[str, str]]]:
    """The records that can be read, and where the chain is broken."""
    found: list[tuple[str, str]] = []
    records: list[Seal] = []
    previous = ""
    for number, line in enumerate(lines, 1):
        record, where = _record(line), f"lineage/{MANIFEST}, record {number}"
        if record is None:
            found.append(("changed", f"{where}: it is no record"))
            continue
        if record.sha256 != _hash(decode(line, dict[str, Any])):
            found.append(("changed", f"{where}: its own hash differs"))
        if record.previous != previous:
            found.append(("changed", f"{where}: it does not follow the record before it"))
        previous = record.sha256
        records.append(record)
    return records, found


def _record(line: str) -> Seal | None:
    try:
        record = decode(line, Seal)
    except ValueError:
        return None
    return record if record.sha256 else None


def _hash(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _lines(lineage: Path) -> list[str]:
    try:
        return read_text(lineage / MANIFEST, MAX_MANIFEST_BYTES).splitlines()
    except FileNotFoundError:
        return []


def _files(run: RunDir) -> Iterator[Path]:
    """All that an attempt leaves; hidden files are locks and secrets."""
    for path in sorted(run.path.rglob("*")):
        name = str(path.relative_to(run.path))
        is_ours = not name.startswith(_NOT_OURS) and not any(part.startswith(".") for part in Path(name).parts)
        if is_ours and (path.is_symlink() or path.is_file()):
            yield path


def _lost_seals(run: RunDir, status: Status | None) -> str:
    """What was taken away of a run that has ended and has no record; RunError where it never had one."""
    if status is None:
        raise RunError(
            f"{run.path} was never sealed: it has not run yet.\nFix: the command that made it, without launch=dry."
        )
    if _lost_its_supervisor(status):
        raise RunError(
            f"{run.path} was never sealed: its supervisor was killed before it could write a record.\n"
            "Fix: the command that made it resumes it, and seals it at its end."
        )
    return f"lineage/{MANIFEST} (or its disk was full)" if any(run.lineage.glob("*")) else "lineage/"


def _unsealed(last: Seal, status: Status) -> str:
    why = "its record is gone, or could not be written"
    if _lost_its_supervisor(status):
        why = "its supervisor was killed before it could write a record; resuming the run seals it"
    attempt = f"attempt {status.attempt} ({status.state})"
    return f"{attempt}: the last record is of attempt {last.attempt}; {why}"


def _lost_its_supervisor(status: Status) -> bool:
    """Whether nobody was left to seal the attempt: a supervisor leaves the record, then its state with `exit`."""
    return not status.state.is_final or (status.state is RunState.KILLED and status.exit is None)
