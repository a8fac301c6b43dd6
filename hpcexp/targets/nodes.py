"""The nodes of a configuration that name a `_target_`: where they are, what they give it, and how mistakes are worded.

Planning checks them against source code (`static_check`), a job against the imported objects (`signature_check`). Both
walk them and word their findings here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcexp.checks.values import typed
from hpcexp.errors import did_you_mean, listed, suggest
from hpcexp.schema.keys import FILLED_IN, HYDRA_KEYS, OWN_KEYS, TARGET


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dotted path and content of every mapping with a `_target_`, outer ones first."""
    if isinstance(node, Mapping):
        if node.get(TARGET) is not None:
            yield path, node
        items: Iterable[tuple[Any, Any]] = node.items()
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from target_nodes(value, f"{path}.{key}" if path else str(key))


@dataclass(frozen=True)
class TargetNode:
    """A mapping with a `_target_`, and what will be done with it."""

    path: str
    node: Mapping[str, Any]
    is_built: bool
    """False below `_recursive_: false`: its target gets the mapping itself, and may add arguments."""


def built_nodes(config: Mapping[str, Any]) -> Iterator[TargetNode]:
    """Every mapping with a `_target_` in a configuration, outer ones first."""
    return _built(config, "", is_built=True, recursive=True)


def _built(node: Any, path: str, *, is_built: bool, recursive: bool) -> Iterator[TargetNode]:
    own, inside = own_keys(path), is_built
    if isinstance(node, Mapping):
        recursive = node.get("_recursive_", recursive) is not False
        if node.get(TARGET) is not None:
            yield TargetNode(path, node, is_built)
            inside = is_built and recursive
        items: Iterable[tuple[Any, Any]] = node.items()
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        # hpcexp builds what is under its own keys by itself.
        is_own = key in own
        name = f"{path}.{key}" if path else str(key)
        yield from _built(value, name, is_built=is_own or inside, recursive=is_own or recursive)


def referenced(node: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of the code that a node uses: its target, and what `hydra.utils.get_method` and the like get."""
    target, path = node[TARGET], node.get("path")
    if isinstance(target, str):
        yield target
        if target in GETTERS and isinstance(path, str):
            yield path


def word_problems(path: str, node: Mapping[str, Any], taken: Iterable[str] = ()) -> Iterator[str]:
    """What is wrong with the words that Hydra reads in a node with a `_target_`."""
    for key, value in node.items():
        if key in _WORDS and not _WORDS[key](value):
            yield f"{path}.{key}={typed(value)}: not {_WORD_VALUES[key]}."
        elif _is_like_word(key) and key not in taken and (near := did_you_mean(key, HYDRA_KEYS)):
            yield f"{path}.{key}: Hydra has no such word.\nFix: {near}Its words: {listed(HYDRA_KEYS)}."
    if node.get("_partial_") is True and (path in _OBJECTS or re.fullmatch(r"callbacks\.[^.]+", path)):
        yield (
            f"{path}._partial_=true: hpcexp needs the object itself here, and completes no other call than those of "
            "the optimizer and the scheduler.\nFix: leave _partial_ out."
        )
    if "_args_" in node and path in _COMPLETED:
        yield (
            f"{path}._args_: hpcexp passes the positional arguments of the {path} itself.\n"
            "Fix: give these arguments by their names."
        )
    if path == "launch" and (words := sorted((HYDRA_KEYS - {TARGET, "_partial_"}) & node.keys())):
        yield f"launch.{words[0]}: a launcher is made from its arguments by name alone.\nFix: leave {words[0]} out."


def _is_like_word(key: Any) -> bool:
    return isinstance(key, str) and key not in HYDRA_KEYS and re.fullmatch(r"_\w+_?", key) is not None


GETTERS = frozenset(f"hydra.utils.get_{kind}" for kind in ("class", "method", "static_method", "object"))
"""Targets that give the class or function in their `path`."""
_OBJECTS = frozenset({"model", "data", "strategy", "launch"})
_COMPLETED = frozenset({"optimizer", "scheduler"})
_CONVERSIONS = ("none", "partial", "object", "all")
_WORDS: dict[Any, Callable[[Any], bool]] = {
    "_partial_": lambda value: isinstance(value, bool),
    "_recursive_": lambda value: isinstance(value, bool),
    "_convert_": lambda value: value in _CONVERSIONS,
    "_args_": lambda value: isinstance(value, list | tuple),
}
_WORD_VALUES = {
    "_partial_": "true or false",
    "_recursive_": "true or false",
    "_convert_": f"one of {listed(_CONVERSIONS)}",
    "_args_": "a list",
}


def has_target(value: Any) -> bool:
    """Whether a value is, or contains, a node with a `_target_`: what the target gets is then what that one returns."""
    return any(True for _ in target_nodes(value))


def own_keys(path: str) -> frozenset[str]:
    """Keys in the section at `path` that hpcexp reads itself."""
    return OWN_KEYS.get(path, frozenset())


def filled_in(path: str) -> frozenset[str]:
    """Arguments that hpcexp gives the section's target by itself."""
    return FILLED_IN.get(path, frozenset())


def unknown_argument(path: str, key: str, target: str, taken: Iterable[str]) -> str:
    """That a target does not take an argument; `taken`: those that it does."""
    valid = {*taken, *own_keys(path)} - {"params"}
    fix = did_you_mean(key, valid) or f"~{path}.{key} leaves it out. "
    return f"{path}.{key}: {target} takes no argument '{key}'.\nFix: {fix}Valid are: {listed(valid)}."


def missing_argument(path: str, key: str, target: str) -> str:
    """That nobody gives an argument without which the target cannot be called."""
    return f"{path}.{key}: {target} needs a value for '{key}'.\nFix: {path}.{key}=…"


def wrong_type(path: str, key: str, value: Any, target: str, why: str) -> str:
    """That a value is not of the type that the target declares; `why` is a sentence like `not int.` of its own."""
    return f"{path}.{key}={typed(value)}: {why} ({target} says so.)"


def wrong_target(path: str, target: Any, reason: str) -> str:
    """That a target does not exist or cannot be called."""
    return f"{path}.{TARGET}={target}: {reason}" + ("" if reason.endswith("?") else ".")


def no_module(name: str) -> str:
    """The reason where the first part of a dotted name is no module."""
    return f"there is no module '{name}' (looked in the current directory and the installed packages)"


def no_name(name: str, owner: str, names: Iterable[str]) -> str:
    """The reason where a module or class has no such name; `names`: those that it has."""
    near = suggest(name, names)
    return f"there is no '{name}' in {owner}" + (f"; {near}" if near else "")


def not_callable(target: str, kind: str) -> str:
    """The reason where a name exists and is no class or function; `kind`: what it is."""
    return f"'{target}' is a {kind}, not something that can be called"
