"""A drill's settings on the command line: `drill.KEY=VALUE` among the overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from hpcexp.checks.values import field_types, type_problem, typed, unknown_key
from hpcexp.errors import ConfigError

PREFIX = "drill."

T = TypeVar("T", bound="Preempt | Devices")


def setting(default: Any, text: str, **bounds: float) -> Any:
    """A field with what it means, and the range that it is held to: `above`, `least`."""
    return field(default=default, metadata={"text": text, **bounds})


_KEEP = "true: keep the drill's runs"


@dataclass(frozen=True)
class Preempt:
    """Of `hpcexp drill preempt`."""

    kills: int = setting(3, "number of kills", least=1)
    seed: int | None = setting(None, "seed of the steps and kinds of the kills; printed, to repeat them")
    keep: bool = setting(False, _KEEP)


@dataclass(frozen=True)
class Devices:
    """Of `hpcexp drill devices`."""

    devices: tuple[int, ...] = setting((1, 2), "numbers of devices; the first is the reference")
    rtol: float | None = setting(None, "relative difference of losses to tolerate; empty: by precision", above=0)
    steps: int = setting(30, "number of steps to compare; rounding grows from step to step", least=1)
    keep: bool = setting(False, _KEEP)


def split(kind: type[T], overrides: Sequence[str]) -> tuple[T, list[str]]:
    """The drill's settings, and the overrides that are the experiment's. ConfigError with every mistake in them."""
    own = [override for override in overrides if override.startswith(PREFIX)]
    values: dict[str, Any] = {}
    problems = []
    for override in own:
        key, _, text = override.removeprefix(PREFIX).partition("=")
        value, problem = _read(kind, key, text)
        values[key] = value
        problems += [problem] if problem else []
    if problems:
        raise ConfigError(problems)
    return kind(**values), [override for override in overrides if override not in own]


def described(kind: Any) -> list[tuple[str, str]]:
    """Each setting as `drill.kills=3`, and what it means."""
    return [(f"{PREFIX}{f.name}={_shown(f.default)}", f.metadata["text"]) for f in dataclasses.fields(kind)]


def _read(kind: Any, key: str, text: str) -> tuple[Any, str | None]:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    name = f"{PREFIX}{key}"
    if key not in fields:
        return None, unknown_key(name, fields)
    if key == "devices":
        return _read_devices(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    value = _as_number(value)
    if problem := type_problem(value, field_types(kind)[key]):
        return None, f"{name}={typed(value)}: {problem}"
    bounds = fields[key].metadata
    if value is None:
        return None, None
    if "least" in bounds and value < bounds["least"]:
        return None, f"{name}={value} is out of range: it must be at least {bounds['least']}."
    if "above" in bounds and not value > bounds["above"]:
        return None, f"{name}={value} is out of range: it must be above {bounds['above']}."
    return value, None


def _read_devices(text: str) -> tuple[tuple[int, ...], str | None]:
    words = text.strip("[]").split(",")
    numbers = tuple(int(word) for word in words if word.strip().isdigit())
    if len(numbers) < len(words) or len(set(numbers)) < max(2, len(numbers)) or 0 in numbers:
        return (), f"drill.devices={text}: two or more different numbers of devices.\nFix: drill.devices=1,2"
    return numbers, None


def _as_number(value: Any) -> Any:
    """The number of `1e-6`, which YAML takes for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None else typed(default)
