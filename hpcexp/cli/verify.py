"""`hpcexp verify`: whether runs are as their last attempts have left them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.errors import RunError
from hpcexp.lineage.manifest import differences, last_record
from hpcexp.runs.records.lineage import Seal
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.status.state import current_state
from hpcexp.text.formatting import pairs


def verify(argv: Sequence[str]) -> int:
    """Exit status 0: nothing was changed; 1: what was is named; 2: a run that cannot be verified, none was changed."""
    p = parser("verify", "Compare runs' files with the digests recorded when they ended.")
    p.add_argument("runs", metavar="RUN", nargs="+", help=RUN_HELP)
    p.add_argument("--json", action="store_true", help="print one JSON object per run")
    a = p.parse_args(argv)
    found = set()
    for run in a.runs:
        try:
            found.add(_verify(a.root, run, as_json=a.json, is_alone=len(a.runs) == 1))
        except RunError as e:
            print(e, file=sys.stderr)
            found.add(2)
    if 1 in found and not a.json:
        print("Fix: restore the files from a backup; until then `hpcexp promote` refuses the run.")
    return 1 if 1 in found else max(found)


def _verify(root: Path, asked: str, *, as_json: bool, is_alone: bool) -> int:
    """Tell of one run, in more than a line where it is alone; its part of the exit status."""
    run = find_run(root, asked)
    if current_state(run) is RunState.RUNNING:
        raise RunError(f"{run.path} is still training: its files change.\nFix: wait for it, or end it.")
    found, last = differences(run), last_record(run.lineage)
    ended = last.status.ended or read_status(run).ended
    name = f"{run.path.parent.name}/{run.path.name}"
    if as_json:
        described = [{"what": what, "file": file} for what, file in found]
        print(json.dumps({"run": name, "seal": last.sha256 or None, "differences": described}))
    elif found:
        print(f"{name}: {len(found)} difference{'s' * (len(found) != 1)} {_since(ended)}\n{pairs(found)}")
    else:
        print("\n".join([f"{name}: unchanged {_since(ended)}", *([pairs(_sealed(last))] if is_alone else [])]))
    return int(bool(found))


def _since(ended: float | None) -> str:
    return f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(ended))}" if ended else "since it ended"


def _sealed(last: Seal) -> list[tuple[str, object]]:
    files = last.files.values()
    by_crc = sum(file.crc32 is not None for file in files)
    counted = f"{len(files)}, by SHA-256" + (f"; {by_crc} big checkpoints by CRC-32" if by_crc else "")
    return [("files", counted), ("attempt", last.attempt), ("seal", last.sha256)]
