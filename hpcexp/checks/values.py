"""Keys, types, ranges and open values of a composed configuration, checked against the schema."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from hpcexp.errors import ConfigError, did_you_mean, listed, suggest
from hpcexp.schema.keys import MISSING, OPEN_SECTIONS, Config

GLOBAL_GROUPS = ("experiment", "debug")
"""Groups whose files set keys of other sections."""
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def value_problems(config: dict[str, Any]) -> list[str]:
    """What is missing, unknown, of the wrong type or out of range."""
    absent = [f.name for f in dataclasses.fields(Config) if f.name not in config]
    if absent:
        raise ConfigError(
            f"The primary config has no {listed(absent)}.\n"
            "Fix: begin its defaults list with `- schema`, as hpcexp's own does."
        )
    problems = [f"{key}: a value is required (???).\nFix: {key}=…" for key in missing_keys(config)]
    problems += schema_problems(Config, config)
    for section, cls in OPEN_SECTIONS.items():
        problems += _open(cls, config[section], section)
    for key in _left_out(config):
        group = key.partition(".")[0]
        choose = f", or {group}=OPTION" if group != "callbacks" else ""
        problems.append(f"{key}: it is needed.\nFix: {key}=…{choose}")
    return problems + _name_problems(config["name"])


def subject(problem: str) -> str:
    """The key that a message is about: every one begins with it."""
    return re.split(r"[^\w.]", problem, maxsplit=1)[0]


def typed(value: Any) -> str:
    """A value as it is typed in an override: `null`, `true`, `[0, 2]`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def missing_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that is still `???`."""
    if node == MISSING:
        yield prefix
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from missing_keys(value, f"{prefix}.{key}" if prefix else str(key))


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Resolved annotations of a dataclass of the schema."""
    return typing.get_type_hints(cls)


def schema_problems(cls: type, values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys of `values` that a class of the schema has not, and values that it does not take."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in fields:
            yield unknown_key(name, fields)
        elif dataclasses.is_dataclass(field_types(cls)[key]):
            yield from schema_problems(field_types(cls)[key], value, f"{name}.")
        else:
            yield from _field(name, value, field_types(cls)[key], fields[key])


def _open(cls: type, values: dict[str, Any], section: str) -> Iterator[str]:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in fields.keys() & values.keys():
        yield from _field(f"{section}.{key}", values[key], field_types(cls)[key], fields[key])


def _field(name: str, value: Any, annotation: Any, field: dataclasses.Field[Any]) -> Iterator[str]:
    if value == MISSING:
        return
    problem = type_problem(value, annotation)
    if problem:
        yield f"{name}={typed(value)}: {problem}"
        return
    options = field.metadata.get("options")
    if options and value is not None and value not in options:
        near = suggest(str(value), options)
        yield f"{name}={value}: not one of {listed(options)}." + (f"\nFix: {near}" if near else "")
    if isinstance(value, int | float):
        yield from _range(name, value, field.metadata)


def _range(name: str, value: float, bounds: typing.Mapping[str, Any]) -> Iterator[str]:
    rules = {"above": ("above", operator.gt), "below": ("below", operator.lt)}
    rules |= {"least": ("at least", operator.ge), "most": ("at most", operator.le)}
    held = {kind: bound for kind, bound in bounds.items() if kind in rules}
    if not math.isfinite(value):
        yield f"{name}={value}: not a number that can be used.\nFix: {name}=…, a finite one."
    elif not all(rules[kind][1](value, bound) for kind, bound in held.items()):
        wanted = " and ".join(f"{rules[kind][0]} {bound}" for kind, bound in held.items())
        yield f"{name}={value} is out of range: it must be {wanted}.\nFix: {name}=…, within that."


def type_problem(value: Any, annotation: Any) -> str | None:
    """Why `value` is not what the annotation says; None where it is, or where the annotation says nothing."""
    allowed = _alternatives(annotation)
    if Any in allowed or any(_is(value, t) for t in allowed):
        return None
    names = [_NAMES.get(typing.get_origin(t) or t, str(t)) for t in allowed if t is not type(None)]
    if value is None:
        return f"it cannot be null; it is {' or '.join(names)}."
    return f"not {' or '.join(names)}."


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is(value: Any, kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _left_out(config: dict[str, Any]) -> Iterator[str]:
    """Keys without which nothing can be built, where a whole group was taken out."""
    nodes = {name: config[name] for name in ("model", "data", "task", "optimizer", "launch")}
    yield from (f"{path}._target_" for path, node in nodes.items() if not node or node.get("_target_") is None)
    if "name" not in config["strategy"]:
        yield "strategy.name"
    for name, node in config["callbacks"].items():
        if not isinstance(node, dict) or "_target_" not in node:
            yield f"callbacks.{name}._target_"


def _name_problems(name: Any) -> list[str]:
    """The name is a directory, and a part of MLflow's names."""
    if not isinstance(name, str) or name == MISSING or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        return []
    return [f"name={name}: a name is at most 100 letters, digits and _ . - only.\nFix: name=my_experiment"]


def unknown_key(name: str, valid: typing.Iterable[str], given: str | None = None) -> str:
    """The message for a key that no one reads, as it was `given`."""
    parent, _, leaf = name.rpartition(".")
    options = sorted(valid)
    fix = f"{did_you_mean(leaf, options)}Valid are: {listed(options)}."
    if name in GLOBAL_GROUPS:
        fix = f"begin the {name}'s file with the line `# @package _global_`."
    return f"{given or name}: there is no key '{leaf}' in {parent or 'the configuration'}.\nFix: {fix}"
