"""The nodes of a configuration that name a `_target_`: where they are, what they give it, and how mistakes are worded.

Planning checks them against source code (`static_check`), a job against the imported objects (`signature_check`). Both
walk them and word their findings here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hpcexp.checks.values import typed
from hpcexp.errors import did_you_mean, listed, suggest
from hpcexp.schema.keys import FILLED_IN, OWN_KEYS, TARGET


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
