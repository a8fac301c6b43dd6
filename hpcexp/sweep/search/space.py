"""A study's space as it is stored in the study, and how it differs from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpcexp.sweep.spec.spec import Axis, Choices, Objective


def describe(axis: Axis) -> str:
    """`0.0001 to 0.1 (log)`, `1 to 9 in steps of 2 (int)`, `a, b`."""
    if isinstance(axis, Choices):
        return ", ".join(axis.values)
    step = f" in steps of {axis.step:g}" if axis.step is not None else ""
    kinds = [word for word, holds in (("log", axis.is_log), ("int", axis.is_int)) if holds]
    return f"{axis.low:g} to {axis.high:g}{step}" + (f" ({', '.join(kinds)})" if kinds else "")


def record(axes: Mapping[str, Axis], objectives: Sequence[Objective]) -> dict[str, Any]:
    """What must stay the same when a study resumes, as JSON."""
    spaces = {name: {"is": describe(axis), **_plain(axis)} for name, axis in axes.items()}
    return {"axes": spaces, "objectives": [asdict(objective) for objective in objectives]}


def _plain(axis: Axis) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(axis).items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, for people."""
    old, new = before["axes"], now["axes"]
    changes = [f"{name}: was {axis['is']}, is no axis now" for name, axis in old.items() if name not in new]
    changes += [f"{name}: {axis['is']}, was no axis" for name, axis in new.items() if name not in old]
    changes += [f"{n}: was {old[n]['is']}, now {new[n]['is']}" for n in new if n in old and old[n] != new[n]]
    if before["objectives"] != now["objectives"]:
        was, is_now = (", ".join(f"{o['metric']} {o['mode']}" for o in r["objectives"]) for r in (before, now))
        changes.append(f"objectives: was {was}, now {is_now}")
    return changes
