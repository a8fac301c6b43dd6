"""Where a run comes from, written into its directory when it starts; what jobs share is collected once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from hpcexp.data.manifest import data_manifest
from hpcexp.files.atomic import second_name, write_atomic
from hpcexp.files.documents import plain, sortable
from hpcexp.hardware.gpus import Survey, survey
from hpcexp.hardware.machine import num_cores, num_gpus
from hpcexp.launch.provenance.origins import origin_facts
from hpcexp.lineage.code import edited, module_file
from hpcexp.lineage.environment import software
from hpcexp.lineage.manifest import MANIFEST
from hpcexp.lineage.patch import Changes, uncommitted
from hpcexp.memo import Once
from hpcexp.plan import Plan, whole
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read
from hpcexp.runs.records.lineage import DataRecord, GpuFacts, HardwareFacts, OriginFacts

_DATA_WAIT_S = 5.0
"""How long a job that has ended waits for the digests of its data."""


class Capture:
    """Writes `lineage/` of the jobs of one command."""

    def __init__(self) -> None:
        self._once = Once()
        self._written: dict[str, tuple[bytes, Path]] = {}
        """The last file of each name; the next job that has the same gets it by a second name."""
        self._reader: ThreadPoolExecutor | None = None
        self._data: dict[Path, Future[None]] = {}

    def begin(self, plan: Plan, run: RunDir, attempt: int, parents: Mapping[str, Any]) -> list[str]:
        """Write what is known when a job starts, and digest its data in the background. Returns warnings."""
        try:
            warnings = self.write(plan, run, attempt, parents)
            self._read_data(plan, run)
        except OSError as e:
            return [f"WARNING: the lineage cannot be written: {e.strerror}."]
        return warnings

    def write(self, plan: Plan, run: RunDir, attempt: int = 0, parents: Mapping[str, Any] | None = None) -> list[str]:
        """Write what is known when a job starts. Returns warnings."""
        news = edited(plan.sources)
        changes = self._changes(plan, renewed=bool(news))
        if changes.patch:
            self._shared(run.lineage / "changes.patch", changes.patch)
        self._shared(run.lineage / "code.json", _json(code_facts(plan, changes, news)))
        self._shared(run.lineage / "environment.json", _json(self._once("software", software)))
        self._shared(run.lineage / "hardware.json", _json(to_builtins(self._once("hardware", hardware))))
        write_atomic(run.lineage / "origin.json", _json(origin_facts(plan, run, attempt, parents or {})))
        if not news:
            return []
        named = ", ".join(news[:3]) + (f" and {len(news) - 3} more" if len(news) > 3 else "")
        return [f"WARNING: code was edited since this job was planned: {named}. Its signature is of the code before."]

    def end(self, run: RunDir) -> None:
        """Wait some seconds for the data's digests."""
        if (written := self._data.pop(run.path, None)) is None:
            return
        try:
            written.result(timeout=_DATA_WAIT_S)
        except Late:
            written.cancel()
        except OSError as e:
            print(f"{run.lineage / 'data.json'} cannot be written: {e.strerror}.", file=sys.stderr)

    def _changes(self, plan: Plan, *, renewed: bool) -> Changes:
        if "git.commit" not in plan.lineage:
            return Changes(problem="the project is in no git repository, or it has no commit")
        if not (plan.lineage["git.dirty"] or renewed):
            return Changes()
        project, runs = Path(plan.lineage["project"]), Path(plan.run_dir).parent.parent.resolve()
        question = ("changes", project, plan.lineage["code.digest"], renewed)
        return self._once(question, lambda: uncommitted(project, runs))

    def _shared(self, path: Path, content: bytes) -> None:
        before, file = self._written.get(path.name, (b"", path))
        if before == content and file != path and file.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            second_name(file, path)
        else:
            write_atomic(path, content)
            self._written[path.name] = content, path

    def _read_data(self, plan: Plan, run: RunDir) -> None:
        """Digest the data in a thread while ranks start; its file is written as soon as that is done."""
        reader = self._reader = self._reader or ThreadPoolExecutor(1, "hpcexp-data")
        data = whole(plan).settings.data
        target, given = data.target, data.arguments
        question = ("data", target, json.dumps(given, default=repr), plan.data and plan.data.fingerprint)
        read = self._once(question, lambda: reader.submit(_manifest, target, given, plan))
        write = partial(self._shared, run.lineage / "data.json")
        self._data[run.path] = reader.submit(lambda: write(_json(plain(read.result()))))


def keep_lineage(run: RunDir, *, goes_on: bool) -> None:
    """Move the lineage of the attempt before into a folder; remove it if this run starts over."""
    if not goes_on:
        shutil.rmtree(run.lineage, ignore_errors=True)
        return
    before = read(run.lineage / "origin.json", OriginFacts).attempt
    for file in [f for f in run.lineage.glob("*") if f.is_file() and f.name != MANIFEST]:
        aside = run.lineage / f"attempt-{before}" / file.name
        aside.parent.mkdir(exist_ok=True)
        file.replace(aside)


def code_facts(plan: Plan, changes: Changes, edited_since: list[str]) -> dict[str, Any]:
    """The commit, the changes on top of it, and the digest of each file that affects the result."""
    patch = {"file": "changes.patch", "sha256": hashlib.sha256(changes.patch).hexdigest()} if changes.patch else None
    return {
        **{name: plan.lineage.get(f"git.{name}") for name in ("commit", "dirty", "remote")},
        "digest": plan.lineage["code.digest"],
        "files": {module_file(Path(file)): content for file, content in plan.sources.items()},
        "edited_since_planning": edited_since,
        "patch": patch,
        "left_out": changes.left_out,
        "problem": changes.problem or None,
    }


def hardware() -> HardwareFacts:
    """The machine: processors, memory, GPUs and their driver."""
    seen = survey() if num_gpus(None) else Survey(())
    return HardwareFacts(
        cpu=_cpu_model(),
        cores=num_cores(),
        cores_of_machine=os.cpu_count(),
        memory_nodes=len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=[GpuFacts(index=g.index, name=g.name, uuid=g.uuid, memory_bytes=g.total) for g in seen.gpus],
        driver=seen.driver or None,
        cuda_of_driver=seen.cuda or None,
        problem=seen.problem or None,
    )


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _manifest(target: str, given: Mapping[str, Any], plan: Plan) -> DataRecord:
    try:
        return data_manifest(target, given, plan.data)
    except Exception as e:  # noqa: BLE001 - the user's data source may raise anything, and no run fails for its digests
        return DataRecord(source=target, problem=f"{type(e).__name__}: {e}")


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(sortable(value), indent=2, sort_keys=True, default=str) + "\n").encode()
