"""Constants that a class is given in its body or inherits, read from source files without importing them."""

from __future__ import annotations

import ast
from typing import Any

from hpcexp.targets.classes import ancestry


def class_constant(target: str, name: str) -> Any:
    """The plain value that the class `target` or the nearest of its bases gives `name`; None where nothing says it."""
    found = ancestry(target, frozenset({"torchmetrics.metric.Metric"}))
    for cls in found.classes if found else ():
        for item in cls.node.body:
            if isinstance(item, ast.Assign):
                targets, value = item.targets, item.value
            elif isinstance(item, ast.AnnAssign) and item.value is not None:
                targets, value = [item.target], item.value
            else:
                continue
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return value.value if isinstance(value, ast.Constant) else None
    return None
