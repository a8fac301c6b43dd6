"""A run beside what would run now: what is the same, and what differs by its name."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.data.manifest import data_manifest
from hpcexp.errors import DataError
from hpcexp.files.atomic import sha256
from hpcexp.lineage.code import is_of_hpcexp, module_file
from hpcexp.lineage.environment import installed
from hpcexp.lineage.signature import identity_config
from hpcexp.plan import Plan, load_plan, load_whole, whole
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read, read_or_none
from hpcexp.runs.records.lineage import CodeFacts, DataFileRecord, DataRecord, EnvironmentFacts, ImportedFacts
from hpcexp.tracking.mlflow.description import flatten

NOTHING = "nothing"
_WHERE = {"commit": "git.commit", "host": "host", "project": "project"}


@dataclass(frozen=True)
class Facts:
    """What makes a run, each part by the names of its pieces. None: it was not kept."""

    plan: Plan
    code: dict[str, str] | None
    """Source file → SHA-256."""
    packages: dict[str, str]
    data: dict[str, str] | None
    """File, below the directory that all are in → what is known of its content."""
    notes: dict[str, str] = field(default_factory=dict)
    """Part → remark on it."""


@dataclass(frozen=True)
class Part:
    """One part of both, compared."""

    name: str
    unit: str
    """What its pieces are."""
    differing: dict[str, tuple[str, str]]
    """Piece → as it was then and as it is now."""
    num_same: int
    note: str = ""
    counts: bool = True
    """Whether a difference can change the result."""


def facts_of_run(run: RunDir) -> Facts:
    """The facts in a run's directory; older runs have fewer."""
    plan = load_plan(run.plan)
    code, job = _code_records(run)
    environment = read_or_none(run.lineage / "environment.json", EnvironmentFacts)
    data = read(run.lineage / "data.json", DataRecord)
    notes = {}
    known = {name.removeprefix("version."): v for name, v in plan.lineage.items() if name.startswith("version.")}
    if environment is None:
        notes["packages"] = f"the run kept the versions of {len(known)} packages alone"
    if code and code.edited_since_planning:
        notes["code"] = f"edited between plan and start of the run: {', '.join(code.edited_since_planning)}"
    packages = {**environment.packages, "python": environment.python.version} if environment else known
    return Facts(plan, _code_then(code, job), packages, _by_place(data.files), notes)


def facts_now(plan: Plan, then: Facts) -> Facts:
    """Of a plan that was made just now. Files that the run imported beyond those of the plan are looked at as well."""
    code = {module_file(Path(file)): digest for file, digest in plan.sources.items()}
    for name in (then.code or {}).keys() - code.keys():
        if (file := Path(plan.lineage["project"], name)).is_file():
            code[name] = sha256(file)
    data_settings = whole(plan).settings.data
    notes = {}
    try:
        data = data_manifest(data_settings.target, data_settings.node, plan.data)
    except (DataError, OSError) as e:
        data, notes["data"] = DataRecord(), f"it cannot be read: {e}"
    packages = {**installed(), "python": platform.python_version()}
    return Facts(plan, code, packages, _by_place(data.files), notes)


def code_of_run(run: RunDir) -> dict[str, str]:
    """Source file → SHA-256, of the code that the run was trained with; empty where it was not kept."""
    return _code_then(*_code_records(run)) or {}


def changed_data(run: RunDir) -> list[str]:
    """Data files that are not what they were when the run was trained; `the data` where single ones were not kept."""
    plan, then = load_whole(run), read(run.lineage / "data.json", DataRecord)
    try:
        now = data_manifest(plan.settings.data.target, plan.settings.data.node, plan.data)
    except (DataError, OSError):
        return []  # who needs it says why
    files, found = _by_place(then.files), _by_place(now.files)
    if files is not None and found is not None:
        return list(part_of("data", "files", files, found).differing)
    is_same = not plan.data or now.fingerprint in (None, plan.data.fingerprint)
    return [] if is_same else ["the data"]


def compared(then: Facts, now: Facts) -> list[Part]:
    """All parts, in the order in which they explain each other."""
    return [
        part_of("config", "keys", flatten(identity_config(then.plan.config, then.plan.topology)), _identity(now.plan)),
        part_of("devices", "facts", _shape(then.plan), _shape(now.plan)),
        _code(then, now),
        _packages(then, now),
        _data(then, now),
        part_of("elsewhere", "facts", _elsewhere(then.plan), _elsewhere(now.plan), counts=False),
    ]


def part_of(
    name: str,
    unit: str,
    then: Mapping[str, str],
    now: Mapping[str, str],
    *,
    note: str = "",
    counts: bool = True,
    shown: Callable[[str], str] = str,
) -> Part:
    """What of two mappings, piece by piece, is the same and what differs."""
    both = sorted({*then, *now})
    differing = {
        key: (_shown(then, key, shown), _shown(now, key, shown)) for key in both if then.get(key) != now.get(key)
    }
    return Part(name, unit, differing, len(both) - len(differing), note, counts)


def _shown(side: Mapping[str, str], key: str, shown: Callable[[str], str]) -> str:
    return shown(side[key]) or "''" if key in side else NOTHING


def _identity(plan: Plan) -> dict[str, str]:
    return flatten(identity_config(plan.config, plan.topology))


def _shape(plan: Plan) -> dict[str, str]:
    """Devices, ranks, batch and steps."""
    topology, batch, steps = plan.topology, plan.batch, plan.steps
    shape = {
        "accelerator": topology.accelerator,
        "ranks": topology.world_size,
        "machines": topology.num_nodes,
        "strategy": topology.strategy,
        "batch": batch and batch.global_size,
        "batch per rank": batch and batch.per_rank,
        "accumulated batches": batch and batch.accumulate,
        "steps": steps and steps.total,
    }
    return {name: str(value) for name, value in shape.items() if value is not None}


def _elsewhere(plan: Plan) -> dict[str, str]:
    """What changes no result: where it runs, what is kept of it."""
    counted = _identity(plan)
    rest = {key: value for key, value in flatten(plan.config).items() if key not in counted}
    origin = {
        "commit": plan.lineage.get("git.commit"),
        "host": plan.lineage.get("host"),
        "project": plan.lineage["project"],
    }
    threads = {"threads per rank": str(plan.topology.threads_per_rank)}
    return {**rest, **{name: str(value) for name, value in origin.items() if value}, **threads}


def _code(then: Facts, now: Facts) -> Part:
    assert now.code is not None
    if then.code is not None:
        note = then.notes.get("code", "")
        return part_of("code", "files", then.code, now.code, note=note, shown=lambda digest: digest[:12])
    digests = [facts.plan.lineage["code.digest"][:12] for facts in (then, now)]
    note = "the run kept no digests of single files, so their names are not known"
    return part_of("code", "digests", {"all files": digests[0]}, {"all files": digests[1]}, note=note)


def _packages(then: Facts, now: Facts) -> Part:
    note = then.notes.get("packages", "")
    here = {name: version for name, version in now.packages.items() if not note or name in then.packages}
    return part_of("packages", "versions", then.packages, here, note=note)


def _data(then: Facts, now: Facts) -> Part:
    digests = [{"fingerprint": p.data.fingerprint[:12]} if p.data else {} for p in (then.plan, now.plan)]
    if then.data is None or now.data is None:
        note = now.notes.get("data") or "of the files, if there are any, nothing was kept"
        return part_of("data", "digests", *digests, note=note)
    return part_of("data", "digests", digests[0] | then.data, digests[1] | now.data)


def _code_records(run: RunDir) -> tuple[CodeFacts | None, ImportedFacts]:
    """What the run kept of its code; None where it kept none."""
    return read_or_none(run.lineage / "code.json", CodeFacts), read(run.lineage / "job.json", ImportedFacts)


def _code_then(code: CodeFacts | None, job: ImportedFacts) -> dict[str, str] | None:
    """Of the plan, and what the job imported beside it; hpcexp's own code as far as it makes results."""
    own = {name: digest for name, digest in job.imported.items() if not is_of_hpcexp(name)}
    return {**own, **code.files} if code else None


def _by_place(files: Sequence[DataFileRecord]) -> dict[str, str] | None:
    """File → its digest, or its size; below the directory that all are in, wherever that lies."""
    if not files:
        return None
    paths = [Path(file.path).absolute() for file in files]
    top = os.path.commonpath([path.parent for path in paths])
    return {os.path.relpath(path, top): _known(file) for path, file in zip(paths, files, strict=True)}


def _known(file: DataFileRecord) -> str:
    """The digest of a data file, or what its listing showed."""
    if file.sha256:
        return file.sha256[:12]
    seconds, rest = divmod(file.modified_ns or 0, 1_000_000_000)
    return f"{file.bytes:,} bytes of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest:09d}"
