"""Every `_target_` of a configuration against the real signature, before anything is built."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from hpcexp.errors import ConfigError
from hpcexp.schema.keys import HYDRA_KEYS, TARGET
from hpcexp.schema.settings import without
from hpcexp.targets.instantiate import call_problems, parameters, resolve
from hpcexp.targets.nodes import built_nodes, filled_in, has_target, own_keys, wrong_type


def check_targets(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the targets of `config`: names, arguments not taken or left out, values of a wrong type.

    Without the launcher: planning has made it, and where ranks run it need not be installed.
    """
    problems: list[str] = []
    for found_node in built_nodes(without(config, {"launch"})):
        path, node = found_node.path, found_node.node
        kept = own_keys(path)
        given = without(node, kept)
        known = filled_in(path) | (kept & node.keys())
        found = call_problems(given, path, given=known, is_complete=found_node.is_built)
        problems += found or type_problems(given, path)
    return problems


def type_problems(node: Mapping[str, Any], path: str) -> list[str]:
    """Values that are not of the type that their argument is annotated with."""
    try:
        target = resolve(node[TARGET], path)
        hints = typing.get_type_hints(getattr(target, "__init__") if isinstance(target, type) else target)  # noqa: B009
    except (ConfigError, NameError, TypeError, AttributeError):
        return []
    names = [k for k in parameters(target) if k in node and k in hints and k not in HYDRA_KEYS]
    return [
        wrong_type(path, name, node[name], node[TARGET], f"not {_shown(hints[name])}.")
        for name in names
        if not matches(node[name], hints[name])
    ]


def matches(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration matches the annotation `hint`; True where this is unknown."""
    if hint is Any or has_target(value):
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(matches(value, option) for option in typing.get_args(hint))
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
    return _matches_by_pydantic(value, hint)


def _matches_by_pydantic(value: Any, hint: Any) -> bool:
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
