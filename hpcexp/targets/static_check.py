"""`_target_`s and their arguments, held against the source code that defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hpcexp.checks.values import type_problem
from hpcexp.schema.keys import MISSING, TARGET
from hpcexp.schema.settings import arguments
from hpcexp.targets.nodes import (
    filled_in,
    missing_argument,
    own_keys,
    target_nodes,
    unknown_argument,
    wrong_target,
    wrong_type,
)
from hpcexp.targets.source_code import Found, Missing, Parameters, Unknown, parameters

Lookup = Callable[[str], Found]


def target_problems(config: Mapping[str, Any], parameters_of: Lookup = parameters) -> list[str]:
    """Every `_target_` that does not exist, and every argument it does not take."""
    return [problem for path, node in target_nodes(config) for problem in node_problems(path, node, parameters_of)]


def node_problems(path: str, node: Mapping[str, Any], parameters_of: Lookup = parameters) -> Iterator[str]:
    """What is wrong with one node, without those inside it."""
    target = node[TARGET]
    if target == MISSING:
        return
    if not isinstance(target, str):
        yield wrong_target(path, target, "not the dotted name of a class or function")
        return
    found = parameters_of(target)
    if isinstance(found, Missing):
        yield wrong_target(path, target, found.reason)
    elif not isinstance(found, Unknown):
        yield from _argument_problems(path, node, found)


def _argument_problems(path: str, node: Mapping[str, Any], takes: Parameters) -> Iterator[str]:
    target, given = node[TARGET], arguments(path, node)
    for key, value in given.items():
        if key in takes.types:
            if _is_plain(value) and (problem := type_problem(value, takes.types[key])):
                yield wrong_type(path, key, value, target, problem)
        elif not takes.takes_any:
            yield unknown_argument(path, key, target, takes.types)
    if "_args_" not in node:
        known = given.keys() | filled_in(path) | (own_keys(path) & node.keys())
        for key in sorted(takes.required - known):
            yield missing_argument(path, key, target)


def _is_plain(value: Any) -> bool:
    return value != MISSING and not isinstance(value, Mapping)
