"""Stages: sweeps of one file that run one after the other, and may name the best run of an earlier one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hpcexp.errors import ConfigError, did_you_mean, listed
from hpcexp.sweep.spec.spec import Axis, Choices, Spec

SEPARATOR = "."
"""Between the name of the file and that of the stage, in the name of a stage's sweep."""
_BEST = re.compile(r"'?\$\{best:(?P<stage>[^}]*)\}'?")


def by_stage(content: Mapping[str, Any], overridden: Iterable[str], where: str) -> dict[str, dict[str, Any]]:
    """Stage → content of its sweep, in their order: its own keys above those of the file; both have their `base`.

    `overridden`: the file's own keys that the command line sets. ConfigError with what is wrong.
    """
    stages = content["stages"]
    if not (isinstance(stages, dict) and stages and all(isinstance(keys, dict) for keys in stages.values())):
        raise ConfigError(
            f"In {where}: stages: a mapping of names to sweeps.\n"
            "Fix: stages: {pretrain: {base: […]}, finetune: {base: […]}}"
        )
    if wrong := [name for name in stages if not re.fullmatch(r"\w[\w-]*", str(name))]:
        raise ConfigError(f"In {where}: stages.{wrong[0]}: a name has letters, digits, _ and -.")
    for key in overridden:
        if set_there := [name for name, keys in stages.items() if key != "base" and key in keys]:
            raise ConfigError(
                f"{key}: stage {set_there[0]} of {where} sets it itself.\nFix: stages.{set_there[0]}.{key}=…"
            )
    if nested := [name for name, keys in stages.items() if "stages" in keys]:
        raise ConfigError(f"In {where}: stages.{nested[0]}.stages: a stage has no stages.")
    for path, keys in {"base": content, **{f"stages.{name}.base": keys for name, keys in stages.items()}}.items():
        if not isinstance(keys.get("base") or [], list):
            raise ConfigError(f"In {where}: {path}: a list of overrides.\nFix: base: [optimizer.lr=0.01]")
    common = {key: value for key, value in content.items() if key != "stages"}
    return {str(name): _content(common, keys) for name, keys in stages.items()}


def _content(common: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    content = {**common, **{str(key): value for key, value in keys.items()}}
    content["base"] = [*(common.get("base") or []), *(keys.get("base") or [])]
    is_one_run = not any(content.get(key) for key in ("axes", "points", "search")) and content.get("seeds") is None
    return content | ({"points": [{}]} if is_one_run else {})


def needed(spec: Spec) -> list[str]:
    """The stages whose best run it names."""
    values = [*spec.base, *(override for point in spec.points for override in point), *_values(spec.axes)]
    return list(dict.fromkeys(match["stage"] for value in values for match in _BEST.finditer(value)))


def stage_problems(stages: Mapping[str, Spec]) -> list[str]:
    """Names of stages in `${best:…}` that are not of an earlier one."""
    problems, earlier = [], list[str]()
    for name, spec in stages.items():
        problems += [
            f"stages.{name}: ${{best:{other}}}: no earlier stage has this name.\n"
            f"Fix: {did_you_mean(other, earlier)}Earlier ones are {listed(earlier)}."
            for other in needed(spec)
            if other not in earlier
        ]
        earlier.append(name)
    return problems


def resolved(spec: Spec, best: Callable[[str], str]) -> Spec:
    """With the run, as typed in an override, in place of each `${best:STAGE}`."""

    def put(text: str) -> str:
        return _BEST.sub(lambda match: best(match["stage"]), text)

    return _changed(spec, lambda overrides: tuple(map(put, overrides)))


def without_best(spec: Spec) -> Spec:
    """Without the settings that name a best run: what can be checked before that run exists."""
    return _changed(spec, lambda overrides: tuple(text for text in overrides if not _BEST.search(text)))


def _changed(spec: Spec, change: Callable[[Sequence[str]], tuple[str, ...]]) -> Spec:
    axes: dict[str, Axis] = {}
    for key, axis in spec.axes.items():
        changed = Choices(change(axis.values)) if isinstance(axis, Choices) else axis
        if not isinstance(changed, Choices) or changed.values:
            axes[key] = changed
    return replace(spec, base=change(spec.base), axes=axes, points=tuple(map(change, spec.points)))


def _values(axes: Mapping[str, Axis]) -> list[str]:
    return [value for axis in axes.values() if isinstance(axis, Choices) for value in axis.values]
