"""Every `_target_` of a configuration against the real signature, before anything is built."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hpcexp.errors import ConfigError
from hpcexp.schema import FILLED_IN, OWN_KEYS
from hpcexp.targets.instantiate import RESERVED, TARGET, call_problems, parameters, resolve, without


def check_targets(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the targets of `config`: names, arguments not taken or left out, values of a wrong type.

    Without the launcher: planning has made it, and where ranks run it need not be installed.
    """
    problems: list[str] = []
    for path, node in targets({name: section for name, section in config.items() if name != "launch"}):
        kept = OWN_KEYS.get(path, frozenset())
        own = without(node, kept)
        found = call_problems(own, path, given=FILLED_IN.get(path, frozenset()) | (kept & node.keys()))
        problems += found or type_problems(own, path)
    return problems


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with a `_target_` and its dotted path, outer ones first."""
    if isinstance(node, Mapping):
        if isinstance(node.get(TARGET), str):
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def type_problems(node: Mapping[str, Any], path: str) -> list[str]:
    """Values that are not of the type that their argument is annotated with."""
    try:
        target = resolve(node[TARGET], path)
        hints = typing.get_type_hints(getattr(target, "__init__") if isinstance(target, type) else target)  # noqa: B009
    except (ConfigError, NameError, TypeError, AttributeError):
        return []
    names = [k for k in parameters(target) if k in node and k in hints and k not in RESERVED]
    return [
        f"{path}.{name}={node[name]!r} is not what {node[TARGET]} takes: {_shown(hints[name])}."
        for name in names
        if not fits(node[name], hints[name])
    ]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration may be given where `hint` is asked; True where this cannot be told."""
    if hint is Any or any(True for _ in targets(value)):
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if hint in (None, type(None)):
        return value is None
    if isinstance(hint, type) and typing.get_origin(hint) is None and not isinstance(value, list | dict | str):
        return isinstance(value, hint)
    return _fits_by_pydantic(value, hint)


def _fits_by_pydantic(value: Any, hint: Any) -> bool:
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    except (PydanticUserError, TypeError, NameError):
        return True
    return True


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
