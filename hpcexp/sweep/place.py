"""Where sweeps are, `<run.root>/sweeps/NAME`, and what their directories hold of what was asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcexp.errors import RunError, listed, suggest
from hpcexp.masking import masked_override, without_passwords
from hpcexp.rundir import SweepDir, is_half_written, read_json, write_atomic
from hpcexp.sweep.spec import Axis, Budget, Choices, Interval, Objective, Search, Spec

_NOT_ASKED = ("hydra", "tracking", "launch", "run", "checkpoint", "notes")
"""Sections whose values make no other sweep."""


def sweep_name(experiment: str, words: Sequence[str], given: Sequence[str]) -> str:
    """Of the sweep that these overrides ask for, in whatever order they are typed."""
    asked = [o for o in given if re.split(r"[./=]", o.lstrip("+~"), maxsplit=1)[0] not in _NOT_ASKED]
    digest = hashlib.sha256("\n".join(sorted(asked)).encode()).hexdigest()[:8]
    return f"{'-'.join([experiment, *words])[:80]}-{digest}"


def sweeps_dir(root: Path) -> Path:
    """The directory of all sweeps beside the runs in `root`."""
    return root / "sweeps"


def find_sweeps(root: Path) -> list[SweepDir]:
    """Every sweep beside the runs in `root`, the one that was begun last at the end."""
    places = [SweepDir(path.parent) for path in sweeps_dir(root).glob("*/sweep.json")]
    return sorted(places, key=lambda place: (_started(place), place.path))


def _started(place: SweepDir) -> float:
    try:
        return float(read_json(place.status).get("started", 0.0))
    except RunError:  # damaged, which matters to who asks for this one
        return 0.0


def find_sweep(root: Path, name: str) -> SweepDir:
    """The sweep of that name, or `last`; RunError where there is none."""
    found = find_sweeps(root)
    if name == "last" and found:
        return found[-1]
    named = [place for place in found if place.path.name == name] or [
        place for place in found if place.path.name.endswith(name)
    ]
    if len(named) == 1:
        return named[0]
    names = [place.path.name for place in found]
    near = suggest(name, names)
    raise RunError(
        f"No sweep in {sweeps_dir(root)} is named '{name}'{'; ' + near if near else '.'}\nSweeps: {listed(names)}."
    )


def ask(place: SweepDir, spec: Spec, project: Path, command: str) -> list[str]:
    """Leave in the directory what is asked; how that differs from what was asked there before.

    RunError where the directory belongs to something else.
    """
    if place.path.exists() and not place.path.is_dir():
        raise RunError(f"{place.path} is no directory.\nFix: move it away, or give the sweep another name (--as NAME).")
    # In this order: another driver that begins at the same moment writes what is asked first of all.
    there = [path for path in place.path.glob("*") if not is_half_written(path)]
    before = read_json(place.asked)
    if there and not before and not place.jobs.exists():
        raise RunError(
            f"{place.path} is there and holds no sweep.\nFix: move it away, or give the sweep another name (--as NAME)."
        )
    other = before.get("project", str(project))
    if other != str(project) and Path(other).exists():  # else it has been moved here
        raise RunError(
            f"{place.path} holds a sweep of the project {other}, and this is {project}.\nFix: run.root=…, or --as NAME."
        )
    base = list(map(masked_override, spec.base))
    told = json.dumps({**to_dict(spec), "base": base, "project": str(project), "command": command}, ensure_ascii=False)
    now = json.loads(without_passwords(told))
    try:
        if now != before:
            write_atomic(place.asked, json.dumps(now, indent=2, ensure_ascii=False) + "\n")  # in the order of the axes
    except OSError as e:
        raise RunError(f"{place.path} cannot be written: {e.strerror}.\nFix: run.root=… where there is room.") from e
    return changes(before, now) if before else []


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was edited, a line each."""
    lines = [
        f"base: without {' '.join(gone)}" for gone in [[o for o in before["base"] if o not in now["base"]]] if gone
    ]
    lines += [f"base: with {' '.join(new)}" for new in [[o for o in now["base"] if o not in before["base"]]] if new]
    for key in dict.fromkeys([*before["axes"], *now["axes"]]):
        old, new = before["axes"].get(key), now["axes"].get(key)
        if old != new:
            lines.append(f"axis {key}: {_shown(old)} → {_shown(new)}")
    for key in ("seeds", "objectives", "search", "budget"):
        if before.get(key) != now[key]:
            lines.append(f"{key}: {_shown(before.get(key))} → {_shown(now[key])}")
    return lines


def to_dict(spec: Spec) -> dict[str, Any]:
    """The sweep as plain data, as `sweep.json` holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return plain


def from_dict(told: Mapping[str, Any]) -> Spec:
    """The sweep that `to_dict` gave."""
    search = told["search"]
    return Spec(
        name=told["name"],
        question=told["question"],
        base=tuple(told["base"]),
        axes={key: _axis(axis) for key, axis in told["axes"].items()},
        points=tuple(map(tuple, told["points"])),
        seeds=tuple(told["seeds"]),
        objectives=tuple(Objective(**o) for o in told["objectives"]),
        search=Search(**search) if search else None,
        budget=Budget(**told["budget"]),
        is_fail_fast=told["is_fail_fast"],
    )


def _axis(told: Mapping[str, Any]) -> Axis:
    return Choices(tuple(told["values"])) if "values" in told else Interval(**told)


def _shown(value: Any) -> str:
    if value in (None, [], {}) or (isinstance(value, Mapping) and not any(value.values())):
        return "none"
    if isinstance(value, Mapping) and "values" in value:
        return ",".join(value["values"])
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_shown(v)}" for k, v in value.items() if v not in (None, False))
    return ",".join(map(_shown, value)) if isinstance(value, list) else str(value)
