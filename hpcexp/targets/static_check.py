"""`_target_`s and their arguments, checked against the source code that defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hpcexp.checks.values import type_problem
from hpcexp.schema.keys import MISSING, TARGET
from hpcexp.schema.settings import arguments
from hpcexp.targets.nodes import (
    built_nodes,
    filled_in,
    missing_argument,
    own_keys,
    referenced,
    unknown_argument,
    word_problems,
    wrong_target,
    wrong_type,
)
from hpcexp.targets.source_code import Found, Missing, Parameters, Unknown, parameters

Lookup = Callable[[str], Found]


def target_problems(config: Mapping[str, Any], parameters_of: Lookup = parameters) -> list[str]:
    """Every `_target_` that does not exist, and every argument it does not take."""
    return [
        problem
        for found in built_nodes(config)
        for problem in node_problems(found.path, found.node, parameters_of, is_built=found.is_built)
    ]


def node_problems(
    path: str, node: Mapping[str, Any], parameters_of: Lookup = parameters, *, is_built: bool = True
) -> Iterator[str]:
    """What is wrong with one node, without those inside it. One that is not built may get further arguments."""
    target = node[TARGET]
    if target == MISSING:
        return
    if not isinstance(target, str):
        yield wrong_target(path, target, "not the dotted name of a class or function")
        return
    found = parameters_of(target)
    yield from word_problems(path, node, found.types if isinstance(found, Parameters) else ())
    if isinstance(found, Missing):
        yield wrong_target(path, target, found.reason)
    elif not isinstance(found, Unknown):
        yield from _argument_problems(path, node, found, is_complete=is_built and node.get("_partial_") is not True)
    for name in set(referenced(node)) - {target}:
        got = parameters_of(name)
        if isinstance(got, Missing) and target != "hydra.utils.get_object":
            yield f"{path}.path={name}: {got.reason}."


def _argument_problems(path: str, node: Mapping[str, Any], takes: Parameters, *, is_complete: bool) -> Iterator[str]:
    target, given = node[TARGET], arguments(path, node)
    for key, value in given.items():
        if key in takes.types:
            if _is_plain(value) and (problem := type_problem(value, takes.types[key])):
                yield wrong_type(path, key, value, target, problem)
        elif not takes.takes_any:
            yield unknown_argument(path, key, target, takes.types)
    if is_complete and "_args_" not in node:
        known = given.keys() | filled_in(path) | (own_keys(path) & node.keys())
        for key in sorted(takes.required - known):
            yield missing_argument(path, key, target)


def _is_plain(value: Any) -> bool:
    return value != MISSING and not isinstance(value, Mapping)
