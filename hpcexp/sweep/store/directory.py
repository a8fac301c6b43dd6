"""Directories of sweeps, `<run.root>/sweeps/NAME`, and the definitions in them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from hpcexp.errors import RunError, listed, suggest
from hpcexp.files.atomic import is_half_written, write_atomic
from hpcexp.files.documents import decode, read_json
from hpcexp.plan import Plan
from hpcexp.redaction import masked_override, without_passwords
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.status import read_status
from hpcexp.runs.records.sweep import AxisRecord, SweepBest, SweepRecord
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec
from hpcexp.sweep.spec.stages import SEPARATOR

_NOT_ASKED = ("hydra", "tracking", "launch", "run", "checkpoint", "notes")
"""Sections whose values do not make it another sweep."""


def sweep_name(experiment: str, words: Sequence[str], given: Sequence[str]) -> str:
    """The name of the sweep with these overrides, in whatever order they are typed."""
    overrides = [o for o in given if re.split(r"[./=]", o.lstrip("+~"), maxsplit=1)[0] not in _NOT_ASKED]
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return f"{'-'.join([experiment, *words])[:80]}-{digest}"


def sweeps_dir(root: Path) -> Path:
    """The directory of all sweeps beside the runs in `root`."""
    return root / "sweeps"


def sweep_dir(project: Path, plan: Plan, name: str) -> SweepDir:
    """The directory of the sweep of that name; `plan`: of any of its jobs."""
    return SweepDir(sweeps_dir(project / plan.settings.run.root) / name)


def best_run(sweep: SweepDir) -> Path | None:
    """The directory of the run that did best; None if there is none yet."""
    try:
        best = read_json(sweep.best, SweepBest)
    except FileNotFoundError:
        return None
    return Path(best.run).absolute() if best.run else None


def find_sweeps(root: Path) -> list[SweepDir]:
    """Every sweep beside the runs in `root`; the last one is the newest."""
    sweeps = [SweepDir(path.parent) for path in sweeps_dir(root).glob("*/sweep.json")]
    return sorted(sweeps, key=lambda sweep: (_started(sweep), sweep.path))


def _started(sweep: SweepDir) -> float:
    try:
        return read_status(sweep).started or 0.0
    except RunError:  # damaged: reported when this sweep is used
        return 0.0


def find_sweep(root: Path, name: str) -> SweepDir:
    """The sweep of that name, or `last`; RunError if there is none."""
    found = find_sweeps(root)
    if name == "last" and found:
        return found[-1]
    named = [sweep for sweep in found if sweep.path.name == name] or [
        sweep for sweep in found if sweep.path.name.endswith(name)
    ]
    if len(named) == 1:
        return named[0]
    names = [sweep.path.name for sweep in found]
    near = suggest(name, names)
    raise RunError(
        f"No sweep in {sweeps_dir(root)} is named '{name}'{'; ' + near if near else '.'}\nSweeps: {listed(names)}."
    )


def find_stages(root: Path, name: str) -> list[SweepDir]:
    """The sweeps of a file's stages that have begun, in the order in which they did; else the sweep of that name."""
    found = find_sweeps(root)
    stages = [sweep for sweep in found if sweep.path.name.startswith(f"{name}{SEPARATOR}")]
    return stages if stages and not any(sweep.path.name == name for sweep in found) else [find_sweep(root, name)]


def ask(sweep: SweepDir, spec: Spec, project: Path, command: str) -> list[str]:
    """Write the definition into the sweep's directory; returns how it differs from the one before.

    RunError if the directory belongs to something else.
    """
    if sweep.path.exists() and not sweep.path.is_dir():
        raise RunError(f"{sweep.path} is no directory.\nFix: move it away, or give the sweep another name (--as NAME).")
    # In this order: another driver that starts at the same moment writes its definition before anything else.
    there = [path for path in sweep.path.glob("*") if not is_half_written(path)]
    before = _record_at(sweep)
    if there and before is None and not sweep.jobs.exists():
        raise RunError(
            f"{sweep.path} is there and holds no sweep.\nFix: move it away, or give the sweep another name (--as NAME)."
        )
    other = (before and before.project) or str(project)
    if other != str(project) and Path(other).exists():  # else it has been moved here
        raise RunError(
            f"{sweep.path} holds a sweep of the project {other}, and this is {project}.\nFix: run.root=…, or --as NAME."
        )
    base = list(map(masked_override, spec.base))
    content = json.dumps({**asdict(spec), "base": base, "project": str(project), "command": command})
    now = decode(without_passwords(content), SweepRecord)
    try:
        if now != before:
            text = json.dumps(to_builtins(now), indent=2, ensure_ascii=False)
            write_atomic(sweep.definition, f"{text}\n")  # not sorted: axes keep their order
    except OSError as e:
        raise RunError(f"{sweep.path} cannot be written: {e.strerror}.\nFix: run.root=… where there is room.") from e
    return changes(before, now) if before else []


def _record_at(sweep: SweepDir) -> SweepRecord | None:
    """The definition of the sweep; None if there is none."""
    try:
        return read_json(sweep.definition, SweepRecord)
    except FileNotFoundError:
        return None


def changes(before: SweepRecord, now: SweepRecord) -> list[str]:
    """What was edited, a line each."""
    lines = [f"base: without {' '.join(gone)}" for gone in [[o for o in before.base if o not in now.base]] if gone]
    lines += [f"base: with {' '.join(new)}" for new in [[o for o in now.base if o not in before.base]] if new]
    for key in dict.fromkeys([*before.axes, *now.axes]):
        old, new = before.axes.get(key), now.axes.get(key)
        if old != new:
            lines.append(f"axis {key}: {_shown(to_builtins(old))} → {_shown(to_builtins(new))}")
    for key in ("seeds", "objectives", "search", "budget"):
        was, is_now = to_builtins(getattr(before, key)), to_builtins(getattr(now, key))
        if was != is_now:
            lines.append(f"{key}: {_shown(was)} → {_shown(is_now)}")
    return lines


def spec_of(record: SweepRecord) -> Spec:
    """The sweep that a `sweep.json` defines."""
    return Spec(
        name=record.name,
        question=record.question,
        base=tuple(record.base),
        axes={key: _axis(axis) for key, axis in record.axes.items()},
        points=tuple(map(tuple, record.points)),
        seeds=tuple(record.seeds),
        objectives=tuple(Objective(objective.metric, objective.mode) for objective in record.objectives),
        search=record.search,
        budget=record.budget,
        is_fail_fast=record.is_fail_fast,
    )


def _axis(record: AxisRecord) -> Axis:
    if record.values is not None:
        return Choices(tuple(record.values))
    assert record.low is not None
    assert record.high is not None
    return Interval(record.low, record.high, record.is_log, record.is_int, record.step)


def _shown(value: Any) -> str:
    if value in (None, [], {}) or (isinstance(value, Mapping) and not any(value.values())):
        return "none"
    if isinstance(value, Mapping) and value.get("values") is not None:
        return ",".join(value["values"])
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_shown(v)}" for k, v in value.items() if v not in (None, False))
    return ",".join(map(_shown, value)) if isinstance(value, list) else str(value)
