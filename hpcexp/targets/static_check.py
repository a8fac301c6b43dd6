"""`_target_`s and their arguments, held against the source code that defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hpcexp.checks.values import type_problem
from hpcexp.errors import did_you_mean, listed
from hpcexp.schema import FILLED_IN, MISSING, OWN_KEYS
from hpcexp.targets.source_code import Found, Missing, Parameters, Unknown, parameters

_HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})


Lookup = Callable[[str], Found]


def target_problems(config: dict[str, Any], parameters_of: Lookup = parameters) -> list[str]:
    """Every `_target_` that does not exist, and every argument it does not take."""
    return [problem for path, node in target_nodes(config) for problem in node_problems(path, node, parameters_of)]


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted path and content of every mapping that has a `_target_`."""
    if isinstance(node, dict) and node.get("_target_") is not None:
        yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from target_nodes(value, f"{path}.{key}" if path else str(key))


def arguments(path: str, node: dict[str, Any]) -> dict[str, Any]:
    """What a node gives its target: without the keys that Hydra or hpcexp read themselves."""
    own = OWN_KEYS.get(path, frozenset())
    return {k: v for k, v in node.items() if k not in _HYDRA_KEYS and k not in own}


def node_problems(path: str, node: dict[str, Any], parameters_of: Lookup = parameters) -> Iterator[str]:
    """What is wrong with one node, without those inside it."""
    target = node["_target_"]
    if target == MISSING:
        return
    if not isinstance(target, str):
        yield f"{path}._target_={target}: not the dotted name of a class or function."
        return
    found = parameters_of(target)
    if isinstance(found, Missing):
        yield f"{path}._target_={target}: {found.reason}" + ("" if found.reason.endswith("?") else ".")
    elif not isinstance(found, Unknown):
        said = OWN_KEYS.get(path, frozenset()) & node.keys()
        yield from _argument_problems(path, target, arguments(path, node), found, said=said, has_args="_args_" in node)


def _argument_problems(
    path: str, target: str, given: dict[str, Any], takes: Parameters, *, said: frozenset[str], has_args: bool
) -> Iterator[str]:
    own = OWN_KEYS.get(path, frozenset())
    for key, value in given.items():
        if key in takes.types:
            problem = type_problem(value, takes.types[key]) if _is_plain(value) else None
            if problem:
                yield f"{path}.{key}={value}: {problem} ({target} says so.)"
        elif not takes.takes_any:
            fix = did_you_mean(key, [*takes.types, *own])
            valid = listed({*takes.types, *own} - {"params"})
            remove = f"~{path}.{key} leaves it out. "
            yield f"{path}.{key}: {target} takes no argument '{key}'.\nFix: {fix or remove}Valid are: {valid}."
    for key in sorted(takes.required - given.keys() - FILLED_IN.get(path, frozenset()) - said):
        if not has_args:
            yield f"{path}.{key}: {target} needs a value for '{key}'.\nFix: {path}.{key}=…"


def _is_plain(value: Any) -> bool:
    return value != MISSING and not isinstance(value, dict)
