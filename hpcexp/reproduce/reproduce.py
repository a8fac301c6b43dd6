"""The way of `hpcexp reproduce`: restore, look, train, compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hpcexp
from hpcexp.compare.bitwise import RTOL
from hpcexp.compare.provenance_diff import NOTHING, Facts, Part, compared, facts_of_run, part_of
from hpcexp.data_spec import DataSpec
from hpcexp.errors import RunError, listed
from hpcexp.files.documents import convert
from hpcexp.launch.provenance.capture import hardware
from hpcexp.lineage.code import is_of_hpcexp
from hpcexp.reproduce.environment import built, from_source
from hpcexp.reproduce.original import Original, changed_since
from hpcexp.reproduce.rerun import check_devices, rerun
from hpcexp.reproduce.verdict import ReproduceVerdict, judged
from hpcexp.reproduce.workspace import Code, code_of, scratch
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read, read_or_none
from hpcexp.runs.records.lineage import DataRecord, EnvironmentFacts, HardwareFacts, ImportedFacts

_NAMED = 10
"""Files that are named in a message."""
_LOG_LINES = 12
_PROBE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from hpcexp.reproduce import probe; del sys.path[0]; probe.main()"
)
"""Asks by this hpcexp, where the code may be a checkout of another."""


@dataclass(frozen=True)
class ReproduceRequest:
    """Options of a reproduction."""

    env: bool = False
    """Build the environment that the run had."""
    keep: bool = False
    as_is: bool = False
    """Train with the present code."""
    rtol: float | None = None


@dataclass(frozen=True)
class ReproduceReport:
    """The result of a reproduction."""

    verdict: ReproduceVerdict
    parts: tuple[Part, ...]
    """What is the same and what is known to differ."""


Announce = Callable[[Original, Code, Sequence[Part], Path | None], None]
"""Hears what is going to be trained, and where it is kept, if it is."""


def reproduce(original: Original, request: ReproduceRequest, announce: Announce) -> ReproduceReport:
    """Train the run again and compare. RunError where that cannot be done."""
    run = original.run
    check_devices(original.plan)
    with ExitStack() as stack:
        directory = stack.enter_context(scratch(keep=request.keep))
        code = stack.enter_context(
            code_of(original, directory, as_is=request.as_is, keep=request.keep, search=sys.path)
        )
        python = sys.executable
        if request.env:
            recorded = read_or_none(run.lineage / "environment.json", EnvironmentFacts)
            python = str(built(recorded, directory / "environment", code.project))
        parts = _looked(original, code, directory, python)
        _check(original, code, parts, as_is=request.as_is)
        announce(original, code, parts, directory if request.keep else None)
        again = rerun(original, code, directory, python)
        rtol = RTOL[original.plan.settings.trainer.precision] if request.rtol is None else request.rtol
        parts += _imported(run, again)
        return ReproduceReport(judged(original, again, rtol), tuple(parts))


def _looked(original: Original, code: Code, directory: Path, python: str) -> list[Part]:
    """What is the same as then and what is not, seen from where the job will stand."""
    ours = directory / "ours"
    ours.mkdir()
    (ours / "hpcexp").symlink_to(Path(hpcexp.__file__).parent)
    command = [python, "-c", _PROBE, str(ours), str(original.run.path)]
    env = code.environment(os.environ)
    done = subprocess.run(command, cwd=code.project, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-_LOG_LINES:])
        raise RunError(f"What {original.name} would find cannot be determined:\n{said}\nFix: what is said last.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["problems"]:
        _data_gone(original, "\n".join(found["problems"]))
    then = facts_of_run(original.run)
    facts = found["facts"] and convert(found["facts"], DataSpec)
    plan = replace(original.plan, data=facts or original.plan.data)
    here = {name: v for name, v in then.packages.items() if name in from_source(code.project)}
    data = found["data"] or ({} if then.data else None)
    now = Facts(plan, found["code"], {**here, **found["packages"]}, data, found["notes"])
    parts = {part.name: part for part in compared(then, now)}
    config, record = changed_since(original)
    return [config, parts["code"], parts["packages"], parts["data"], _machine(original), record]


def _check(original: Original, code: Code, parts: Sequence[Part], *, as_is: bool) -> None:
    """RunError where code or data are not what they were."""
    by_name = {part.name: part for part in parts}
    differing, number = by_name["code"].differing, len(by_name["code"].differing)
    if differing and not as_is:
        raise RunError(
            f"The code is not that of {original.name} ({code.description}): "
            f"{number} of {number + by_name['code'].num_same} "
            f"files differ.\n{_files(differing)}\n{_why(original, code, differing)}"
        )
    if gone := {name: both for name, both in by_name["data"].differing.items() if both[1] == NOTHING}:
        num_files = read(original.run.lineage / "data.json", DataRecord).num_files
        _data_gone(original, f"{len(gone)} of {num_files} files gone.\n{_files(gone)}")


def _why(original: Original, code: Code, differing: dict[str, tuple[str, str]]) -> str:
    left_out = original.code.left_out if original.code else {}
    description = [f"The patch leaves out {name}: {why}." for name, why in left_out.items()]
    if all(is_of_hpcexp(name) for name in differing):
        version = original.plan.lineage.get("version.hpcexp")
        return f"The run is of another hpcexp ({version}).\nFix: install that one; --as-is trains with this one."
    fix = "put them beside" if code.is_restored else "put back what they were"
    return "\n".join([*description[:_NAMED], f"Fix: {fix}; --as-is trains with the present code."])


def _files(differing: dict[str, tuple[str, str]]) -> str:
    more = len(differing) - _NAMED
    lines = [f"  {name}  {then} → {now}" for name, (then, now) in list(differing.items())[:_NAMED]]
    return "\n".join([*lines, *([f"  … {more} more"] if more > 0 else [])])


def _data_gone(original: Original, what: str) -> None:
    raise RunError(
        f"The data of {original.name} is not there: {what}\n"
        f"Fix: have it back where it was; {original.run.lineage / 'data.json'} has each file with its digest."
    )


def _machine(original: Original) -> Part:
    """Kind of processor and GPUs, and how many machines."""
    then, now = read_or_none(original.run.lineage / "hardware.json", HardwareFacts), hardware()
    machines = str(original.plan.topology.num_nodes)
    return part_of("machine", "facts", {"machines": machines, **_kinds(then or now)}, {"machines": "1", **_kinds(now)})


def _kinds(machine: HardwareFacts) -> dict[str, str]:
    gpus = {"gpus": listed({gpu.name for gpu in machine.gpus}), "driver": str(machine.driver)} if machine.gpus else {}
    return {"cpu": machine.cpu, **gpus}


def _imported(run: RunDir, again: RunDir) -> list[Part]:
    """Modules that were really imported as another code than then; nothing where there are none."""
    then, now = (read(r.lineage / "job.json", ImportedFacts).imported for r in (run, again))
    both = sorted(name for name in then.keys() & now.keys() if not is_of_hpcexp(name))
    sides = ({name: side[name] for name in both} for side in (then, now))
    part = part_of("imported", "files", *sides, shown=lambda digest: digest[:12])
    return [part] if part.differing else []
