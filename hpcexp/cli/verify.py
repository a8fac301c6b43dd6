"""`hpcexp verify`: whether a run is as its last attempt has left it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hpcexp.cli.arguments import RUN_HELP, find_run, parser
from hpcexp.errors import RunError
from hpcexp.lineage.manifest import differences, last_record
from hpcexp.record.alive import current_state
from hpcexp.text import pairs


def verify(argv: Sequence[str]) -> int:
    """Exit status 0: nothing was changed; 1: what was is named; 2: there is nothing to verify."""
    p = parser("verify", "Hold a run's files against the digests that were kept when it ended.")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--json", action="store_true", help="as one JSON object")
    a = p.parse_args(argv)
    run = find_run(a.root, a.run)
    if current_state(run.read_status()) == "running":
        raise RunError(f"{run.path} is still being trained: its files change.\nFix: wait for it, or end it.")
    found, last = differences(run), last_record(run.lineage)
    name = f"{run.path.parent.name}/{run.path.name}"
    if a.json:
        told = [{"what": what, "file": file} for what, file in found]
        print(json.dumps({"run": name, "seal": last.get("sha256"), "differences": told}))
    elif found:
        print(f"{name}: {len(found)} difference{'s' * (len(found) != 1)} {_since(last)}\n{pairs(found)}")
    else:
        print(f"{name}: untouched {_since(last)}\n{pairs(_sealed(last))}")
    return int(bool(found))


def _since(last: Mapping[str, Any]) -> str:
    ended = last.get("status", {}).get("ended")
    return f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(ended))}" if ended else "since it ended"


def _sealed(last: Mapping[str, Any]) -> list[tuple[str, object]]:
    files = last["files"].values()
    by_crc = sum("crc32" in told for told in files)
    told = f"{len(files)}, by SHA-256" + (f"; {by_crc} big checkpoints by CRC-32" if by_crc else "")
    return [("files", told), ("attempt", last["attempt"]), ("seal", last["sha256"])]
