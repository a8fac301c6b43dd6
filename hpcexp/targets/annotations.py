"""Expressions of source code that name something: types in annotations, dotted names."""

from __future__ import annotations

import ast
from typing import Any

_SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
_SEQUENCES = {"Sequence", "list", "List", "tuple", "Tuple", "Iterable"}


def plain_type(node: ast.expr | None) -> Any:
    """The annotation as far as it is about plain values; Any otherwise."""
    if isinstance(node, ast.Constant):
        if node.value is None:
            return type(None)
        return plain_type(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([plain_type(node.left), plain_type(node.right)])
    if isinstance(node, ast.Subscript):
        outer = dotted_name(node.value).rpartition(".")[2]
        if outer == "Optional":
            return _union([plain_type(node.slice), type(None)])
        if outer == "Union" and isinstance(node.slice, ast.Tuple):
            return _union([plain_type(e) for e in node.slice.elts])
        return list if outer in _SEQUENCES else Any
    name = dotted_name(node).rpartition(".")[2]
    return list if name in _SEQUENCES else _SCALARS.get(name, Any)


def _union(types: list[Any]) -> Any:
    if Any in types:
        return Any
    union = types[0]
    for kind in types[1:]:
        union = union | kind
    return union


def dotted_name(node: ast.expr | None) -> str:
    """`a.b.c` of an expression; empty where it is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return ""
