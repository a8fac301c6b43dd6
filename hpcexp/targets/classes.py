"""What a class inherits and defines, read from the source of it and of its bases. Nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcexp.targets.annotations import dotted_name
from hpcexp.targets.source_code import Missing, Module, Unknown, absolute_name, locate, lookup

_MAX_DEPTH = 16
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceClass:
    """A class as its source defines it."""

    module: Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        """The module that defines it, and its name there."""
        return f"{self.module.name}.{self.node.name}"

    def defines(self, attribute: str) -> bool:
        """Whether its own body binds the attribute."""
        return any(attribute in _bound_in_body(statement) for statement in self.node.body)

    def assigns(self, attribute: str) -> Iterator[ast.expr]:
        """The values of `self.ATTRIBUTE = …` in its methods."""
        for node in ast.walk(self.node):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Attribute) and dotted_name(target) == f"self.{attribute}":
                        yield node.value


@dataclass(frozen=True)
class Ancestry:
    """A class and its bases in the order in which attributes are looked up, down to the roots that end the search."""

    classes: tuple[SourceClass, ...]
    is_complete: bool
    """Whether every base could be read."""
    root: str | None
    """The first of the roots among them."""

    @cached_property
    def before_root(self) -> tuple[SourceClass, ...]:
        """Those whose attributes win over the root's."""
        names = [c.name for c in self.classes]
        return self.classes[: names.index(self.root)] if self.root in names else self.classes

    def overrides(self, attribute: str) -> bool | None:
        """Whether one of them redefines an attribute of the root; None where a base is unknown."""
        if any(c.defines(attribute) for c in self.before_root):
            return True
        return False if self.is_complete else None

    def assigns(self, attribute: str, value: object) -> bool:
        """Whether a method of one of them has `self.ATTRIBUTE = VALUE`."""
        assigned = (node for c in self.before_root for node in c.assigns(attribute))
        return any(isinstance(node, ast.Constant) and node.value == value for node in assigned)


def ancestry(target: str, roots: frozenset[str]) -> Ancestry | None:
    """The ancestry of the class that `target` names or, being a function or method, makes; None where it is unknown."""
    try:
        cls = _class_of(target)
        classes, is_complete = _linearised(cls, roots, 0) if cls else ([], False)
    except SyntaxError:
        return None
    if not classes:
        return None
    root = next((c.name for c in classes if c.name in roots), None)
    return Ancestry(tuple(classes), is_complete, root)


def _class_of(target: str) -> SourceClass | None:
    """The class itself, or that of what a function returns, or the owner of a constructor (`Class.from_file`)."""
    found = locate(target)
    if isinstance(found, Missing | Unknown):
        owner, _, _method = target.rpartition(".")
        found = locate(owner) if owner else found
        return _as_class(found)
    module, node = found
    if isinstance(node, ast.ClassDef):
        return SourceClass(module, node)
    returned = {cls.name: cls for cls in filter(None, (_named(module, e) for e in _returned(node)))}
    if len(returned) == 1:
        return next(iter(returned.values()))
    owner = target.rpartition(".")[0]
    return _as_class(locate(owner)) if owner and not returned else None


def _returned(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """What the annotation or, without one, the return statements of a function name as the class of its result."""
    if function.returns is not None and not isinstance(function.returns, ast.Constant):
        yield function.returns
        return
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
            yield node.value.func


def _named(module: Module, expression: ast.expr) -> SourceClass | None:
    """The class that an expression names in a module."""
    name = dotted_name(expression.value if isinstance(expression, ast.Subscript) else expression)
    if not name:
        return None
    found = lookup(module, name) if "." not in name else locate(absolute_name(module, name) or "")
    return _as_class(found)


def _as_class(found: Any) -> SourceClass | None:
    """What `locate` has found, if it is a class."""
    return SourceClass(*found) if isinstance(found, tuple) and isinstance(found[1], ast.ClassDef) else None


def _linearised(cls: SourceClass, roots: frozenset[str], depth: int) -> tuple[list[SourceClass], bool]:
    """The method resolution order (C3), without torch's classes and the bases of roots; whether all of it is known."""
    if cls.name in roots:
        return [cls], True
    if depth > _MAX_DEPTH:
        return [cls], False
    is_complete, orders, bases = True, [], []
    for expression in cls.node.bases:
        if root := _torch_root(cls.module, expression, roots):
            orders.append([root])
            bases.append(root)
            continue
        if _is_leaf(cls.module, expression):
            continue
        base = _named(cls.module, expression)
        if base is None:
            is_complete = False
            continue
        order, known = _linearised(base, roots, depth + 1)
        is_complete &= known
        orders.append(order)
        bases.append(base)
    merged = _merged([*orders, bases])
    return [cls, *merged], is_complete


def _torch_root(module: Module, base: ast.expr, roots: frozenset[str]) -> SourceClass | None:
    """A base that is one of the roots and torch's, by whatever name torch exports it."""
    name = dotted_name(base.value if isinstance(base, ast.Subscript) else base)
    package, _, cls = (absolute_name(module, name) or "").rpartition(".")
    for root in roots:
        place, _, own = root.rpartition(".")
        if cls == own and package.startswith(place) and place.startswith("torch."):
            node = ast.ClassDef(own, bases=[], keywords=[], body=[], decorator_list=[])
            return SourceClass(Module(place, Path(), is_package=True), node)
    return None


def _is_leaf(module: Module, base: ast.expr) -> bool:
    """Whether a base ends the search: torch's classes inherit from nobody else's, and take 25 ms to read."""
    name = dotted_name(base.value if isinstance(base, ast.Subscript) else base)
    return name in ("object", "ABC", "Generic", "Protocol") or (absolute_name(module, name) or "").startswith("torch.")


def _merged(orders: list[list[SourceClass]]) -> list[SourceClass]:
    """The C3 merge; classes in an inconsistent order, which Python refuses, stay in that of the bases."""
    merged: list[SourceClass] = []
    waiting = [list(order) for order in orders if order]
    while waiting:
        tails = {c.name for order in waiting for c in order[1:]}
        head = next((order[0] for order in waiting if order[0].name not in tails), waiting[0][0])
        merged.append(head)
        waiting = [rest for order in waiting if (rest := [c for c in order if c.name != head.name])]
    return merged


def _bound_in_body(statement: ast.stmt) -> set[str]:
    if isinstance(statement, _Definition):
        return {statement.name}
    if isinstance(statement, ast.If | ast.Try | ast.With):
        inner = [*getattr(statement, "body", []), *getattr(statement, "orelse", [])]
        return set().union(*map(_bound_in_body, inner)) if inner else set()
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [statement.target]
        if isinstance(statement, ast.AnnAssign) and statement.value is not None
        else []
    )
    return {t.id for t in targets if isinstance(t, ast.Name)}
