"""`sweeps/NAME.yaml` as a sweep; everything that is wrong in it is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

import hpcexp
from hpcexp.checks.values import missing_keys, schema_problems, typed
from hpcexp.compose.composer import Composer
from hpcexp.compose.yaml_files import load_yaml, read_config_text
from hpcexp.errors import ConfigError, listed, suggest
from hpcexp.schema.sweep import Budget, Search, SweepFile
from hpcexp.sweep.spec.axes import axis_of, is_merged
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec
from hpcexp.sweep.spec.stages import SEPARATOR, by_stage, stage_problems
from hpcexp.sweep.spec.typed import quoted
from hpcexp.text.formatting import near

_INTERVAL = ("low", "high", "log", "int", "step")


def sweep_files(project: Path) -> dict[str, Path]:
    """Name → file of the project's sweeps and of those that came with hpcexp."""
    places = [packaged_sweeps(), project / "sweeps"]
    return {file.stem: file for place in places for file in sorted(place.glob("*.yaml"))}


def packaged_sweeps() -> Path:
    """The sweeps/ that came with hpcexp: inside the package when installed, beside it in a checkout."""
    package = Path(hpcexp.__file__).resolve().parent
    inside = package / "sweeps"
    return inside if inside.is_dir() else package.parent / "sweeps"


def read_sweeps(name: str, composer: Composer, overrides: Sequence[str], called: str | None = None) -> dict[str, Spec]:
    """Stage → its sweep, of a file, with `overrides` on top: of its own keys, of axes, and of the base.

    A file without stages has one sweep, of the stage "". `called`: the name of its directory where that is not the
    file's. ConfigError names all that is wrong.
    """
    files = sweep_files(composer.project)
    if name not in files:
        near = suggest(name, files)
        raise ConfigError(f"There is no sweeps/{name}.yaml{'; ' + near if near else '.'}\nSweeps: {listed(files)}.")
    file, title = files[name], called or name
    own, rest = _split(overrides)
    content = _read(file)
    known = content.get("stages") or {}
    for way in (o.partition("=")[0].split(".") for o in own):
        if way[0] == "stages" and (len(way) < 3 or way[1] not in known):
            raise ConfigError(f"{'.'.join(way)}: a key of one of the stages of {file.name}: {listed(known)}.")
    content = _with_own(content, own)
    if "stages" not in content:
        return {"": _checked(content, title, composer, rest, file)}
    contents = by_stage(content, [key for o in own if (key := re.split("[=.]", o)[0]) != "stages"], file.name)
    sweeps = {
        stage: _checked(keys, f"{title}{SEPARATOR}{stage}", composer, rest, file) for stage, keys in contents.items()
    }
    if problems := stage_problems(sweeps):
        raise ConfigError([f"In {file.name}: {problem}" for problem in problems])
    return sweeps


def _checked(content: dict[str, Any], name: str, composer: Composer, rest: Sequence[str], file: Path) -> Spec:
    if problems := _problems(content, file):
        raise ConfigError(problems)
    return _spec(content, name, composer, rest, file)


def _read(file: Path) -> dict[str, Any]:
    content = load_yaml(read_config_text(file), near(file))
    if not isinstance(content, dict):
        raise ConfigError(f"{file} has no keys.\nFix: `hpcexp help sweep` shows those of a sweep.")
    return {str(key): value for key, value in content.items()}


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the file's own keys, and all others."""
    fields = SweepFile.__dataclass_fields__
    own = [o for o in overrides if o.partition("=")[0].partition(".")[0] in fields]
    return own, [o for o in overrides if o not in own]


def _with_own(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The file's content with the command line's overrides of its own keys (`budget.trials=50`)."""
    changed = {**content}
    for override in _parsed(overrides, "the command line"):
        way = override.key_or_group.split(".")
        node = changed
        for key in way[:-1]:
            below = node.get(key)
            node[key] = {**below} if isinstance(below, dict) else {}
            node = node[key]
        node[way[-1]] = override.value()
    return changed


def _problems(content: dict[str, Any], file: Path) -> list[str]:
    head = f"In {file.name}: "
    if not isinstance(content.get("budget", {}), dict):
        return [f"{head}budget: a mapping, for example `budget: {{trials: 40}}`."]
    search = content.get("search")
    if search is not None and not isinstance(search, dict):
        return [f"{head}search: a mapping, for example `search: {{sampler: tpe}}`."]
    found = [*schema_problems(SweepFile, {k: v for k, v in content.items() if k != "search"})]
    if search is not None:
        found += [*schema_problems(Search, search, "search.")]
        found += [] if "sampler" in search else ["search.sampler: it is needed.\nFix: search: {sampler: tpe}"]
    found += [] if content.get("question") else ["question: it is needed: one sentence that the sweep answers."]
    found += [f"{key}: a value is required (???)." for key in missing_keys(content)]
    if not (content.get("axes") or content.get("points") or content.get("seeds") is not None):
        found.append("it asks for nothing but one run: it has neither axes nor points nor seeds.")
    if search and content.get("points"):
        found.append("search and points: a search finds its points itself.\nFix: leave one of them out.")
    return [f"{head}{problem}" for problem in found]


def _spec(content: Mapping[str, Any], name: str, composer: Composer, rest: Sequence[str], file: Path) -> Spec:
    where = file.name
    search = content.get("search")
    axes = {
        key: _axis(key, value, composer, where, is_searched=search is not None)
        for key, value in (content.get("axes") or {}).items()
    }
    base = [_override(o, where) for o in content.get("base") or []]
    for override in _parsed(rest, "the command line", composer):
        key = override.get_key_element().lstrip("+")
        if not is_merged(override):
            base = [o for o in base if o.lstrip("+~").partition("=")[0] != key]
        if override.is_sweep_override():
            axes[key] = axis_of(override, is_searched=search is not None)
        else:
            axes.pop(key, None)
            base.append(str(override.input_line))
    if search is None and (open_ones := [key for key, axis in axes.items() if isinstance(axis, Interval)]):
        raise ConfigError(
            f"In {where}: axes.{open_ones[0]} has no end of values to run through.\n"
            "Fix: a list of values, or `search: {sampler: tpe}` with `budget: {trials: 40}`."
        )
    if "seed" in axes and content.get("seeds") is not None:
        raise ConfigError(
            f"In {where}: seeds, and an axis seed: each run would count several times.\nFix: leave one out."
        )
    return Spec(
        name=name,
        question=str(content["question"]),
        base=tuple(base),
        axes=axes,
        points=tuple(_point(point, where) for point in content.get("points") or []),
        seeds=_seeds(content.get("seeds"), where),
        objectives=_objectives(content.get("metric"), content.get("mode"), where),
        search=Search(**search) if search else None,
        budget=Budget(**(content.get("budget") or {})),
        is_fail_fast=content.get("on_failure") == "stop",
    )


def _axis(key: str, value: Any, composer: Composer, where: str, *, is_searched: bool) -> Axis:
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"In {where}: axes.{key} has no values.")
        return Choices(tuple(map(quoted, value)))
    if isinstance(value, dict):
        if unknown := [k for k in value if k not in _INTERVAL]:
            raise ConfigError(f"In {where}: axes.{key} has no '{unknown[0]}'.\nValid are: {listed(_INTERVAL)}.")
        low, high = value.get("low"), value.get("high")
        if not (_is_number(low) and _is_number(high)):
            raise ConfigError(f"In {where}: axes.{key} needs two numbers.\nFix: {key}: {{low: 0.001, high: 0.1}}")
        return Interval(low, high, bool(value.get("log")), bool(value.get("int")), value.get("step"))
    [override] = _parsed([f"{key}={value}"], where, composer)
    if override.is_sweep_override():
        return axis_of(override, is_searched=is_searched)
    return Choices((quoted(value),))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _override(given: Any, where: str) -> str:
    if isinstance(given, dict) and len(given) == 1:
        [(key, value)] = given.items()
        return f"{key}={quoted(value)}"
    if not isinstance(given, str):
        raise ConfigError(f"In {where}: base: {typed(given)} is no override.\nFix: base: [optimizer.lr=0.01]")
    [override] = _parsed([given], where)
    if override.is_sweep_override():
        raise ConfigError(f"In {where}: base: {given} has several values.\nFix: name it under axes.")
    return given


def _point(point: Any, where: str) -> tuple[str, ...]:
    if not isinstance(point, dict):
        raise ConfigError(f"In {where}: points: {typed(point)} is no mapping.\nFix: points: [{{optimizer.lr: 0.01}}]")
    return tuple(f"{key}={quoted(value)}" for key, value in point.items())


def _seeds(content: Any, where: str) -> tuple[int, ...]:
    if content is None:
        return ()
    if isinstance(content, int) and not isinstance(content, bool) and content >= 1:
        return tuple(range(1, content + 1))
    if (
        isinstance(content, list)
        and content
        and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in content)
    ):
        return tuple(dict.fromkeys(content))
    raise ConfigError(f"In {where}: seeds={typed(content)}: not a number of seeds from 1, nor a list of seeds.")


def _objectives(metric: Any, mode: str | None, where: str) -> tuple[Objective, ...]:
    if metric is None:
        return ()
    if isinstance(metric, dict):
        if wrong := [m for m, way in metric.items() if way not in ("max", "min")]:
            raise ConfigError(f"In {where}: metric.{wrong[0]}: neither max nor min.")
        return tuple(Objective(str(name), str(way)) for name, way in metric.items())
    return (Objective(str(metric), mode or ""),)


def _parsed(overrides: Sequence[str], where: str, composer: Composer | None = None) -> list[Override]:
    parser = OverridesParser.create(config_loader=composer.loader if composer else None)
    found, problems = [], []
    for override in overrides:
        try:
            found.append(parser.parse_override(override))
        except HydraException:
            problems.append(f"In {where}: {override}: not an override that can be read.\nFix: key=value")
    if problems:
        raise ConfigError(problems)
    return found
