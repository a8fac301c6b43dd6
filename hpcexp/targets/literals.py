"""Plain data for `hydra.utils.instantiate`, which resolves the texts in it again: `${x}` in a frozen plan is a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OPENING = re.compile(r"(\\*)\$\{")
_RESOLVED = 2
"""How often Hydra resolves a text on its way to a target: when it copies the node and when it reads the copy."""


def literal(node: Mapping[str, Any]) -> dict[str, Any]:
    """`node` with its texts escaped so that its target gets them as they are."""
    escaped: dict[str, Any] = _literal(node, "all", recursive=True) if _any(node) else {**node}
    return escaped


def _literal(value: Any, convert: str, *, recursive: bool, in_container: bool = False) -> Any:
    if isinstance(value, str):
        # OmegaConf's containers, which `_convert_: none` keeps, resolve once more when they are read.
        return escaped(value, _RESOLVED + (in_container and recursive and convert == "none"))
    if isinstance(value, Mapping):
        convert, recursive = value.get("_convert_", convert), value.get("_recursive_", recursive)
        inside = "_target_" not in value
        return {k: _literal(v, convert, recursive=recursive, in_container=inside) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item, convert, recursive=recursive, in_container=True) for item in value]
    return value


def escaped(text: str, times: int = 1) -> str:
    """A text that OmegaConf resolves, so many times, to `text`."""
    for _ in range(times):
        text = _OPENING.sub(lambda found: f"{found[1] * 2}\\${{", text)
    return text


def _any(value: Any) -> bool:
    if isinstance(value, str):
        return "${" in value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(map(_any, inner))
