"""Which files a data set is, to the byte: what a run keeps of them, and what has become of them since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from hpcexp.data.content import How, of_files, printable
from hpcexp.data.facts import source_of
from hpcexp.data.source import Source
from hpcexp.data_spec import DataSpec
from hpcexp.runs.records.lineage import DataFileRecord, DataRecord

MAX_NAMED = 10_000
"""Files that are kept one by one; of more there is the digest of all."""


def data_manifest(target: str, arguments: Mapping[str, Any], facts: DataSpec | None) -> DataRecord:
    """The files of a data set and the digest of all of them; sizes and schema of the samples."""
    known = DataRecord(source=target, **(samples(facts) if facts else {}))
    source = source_of(target, arguments)
    if source is None:
        return replace(known, note="What it is read from is known to the job alone.")
    files = _files(source, "auto" if facts is None else "listing" if facts.trusted else "content")
    if not files:
        return replace(known, note="It has no files: it is made from its arguments.")
    return replace(
        known,
        digest=hashlib.sha256(json.dumps(to_builtins(files), sort_keys=True).encode()).hexdigest(),
        num_files=len(files),
        bytes=sum(file.bytes for file in files),
        num_read=sum(file.sha256 is not None for file in files),
        files=files[:MAX_NAMED],
    )


def _files(source: Source, how: How) -> list[DataFileRecord]:
    found = of_files(source, how)
    is_read = not found.content.trusted
    return [
        DataFileRecord(
            path=printable(str(path)),
            bytes=stamp.size,
            rows=rows,
            sha256=digest if is_read else None,
            modified_ns=None if is_read else min(max(stamp.mtime_ns, 0), 2**62),
        )
        for path, rows, stamp, digest in zip(found.paths, found.rows, found.stamps, found.content.digests, strict=True)
    ]


def samples(facts: DataSpec) -> dict[str, Any]:
    """Rows and schema, as MLflow shows them with a data set."""
    return {
        "fingerprint": facts.fingerprint,
        "rows": {split: count for split, count in facts.num_samples.items() if count is not None},
        "schema": {"inputs": to_builtins(facts.inputs), "targets": to_builtins(facts.targets)},
    }
