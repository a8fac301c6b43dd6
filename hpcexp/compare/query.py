"""A filter over what is recorded: `experiment == 'digits_mlp' and optimizer.lr < 0.01 and test/acc >= 0.9`.

Python's grammar does the parsing. Of its trees comparisons, `and`, `or`, `not`, names and constants are taken; Python
itself evaluates nothing of it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hpcexp.errors import ConfigError

EXAMPLE = "model == 'cnn' and optimizer.lr < 0.01 and test/acc >= 0.9"

Value = str | float | bool | None | tuple[str, ...]
"""None: there is none. Several texts: one of them is enough."""
Lookup = Callable[[str], Value]
"""Name → what a run has under it."""
_Part = Callable[[Lookup], Any]

_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|`(?P<quoted>[^`]+)`|\d[\w.]*(?:(?<=[eE])[+-]\d+)?|(?P<name>[^\W\d][\w./:-]*)""")
_WORDS = frozenset(("and", "or", "not", "in", "True", "False", "None"))
_CONSTANTS = {"true": "True", "false": "False", "null": "None"}
"""As a configuration spells them → as Python does."""
_ORDERS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_HINTS = {
    r"(?<![=!<>])=(?!=)": "Equality is ==.",
    r"&|\|": "Conditions are joined by and, or.",
    r"!(?!=)": "The opposite of a condition is: not …",
    r"<>": "Its opposite is !=.",
}
"""What others write for it → how it is written here."""


@dataclass(frozen=True)
class Query:
    """A filter that was read."""

    text: str
    names: tuple[str, ...]
    """What it asks of a run."""
    test: _Part

    def matches(self, lookup: Lookup) -> bool:
        """Whether it holds for a run."""
        return _is_true(self.test(lookup))


def parse(text: str) -> Query:
    """The filter; ConfigError where it is none."""
    text = re.sub(r"\s", " ", text)
    names: dict[int, str] = {}
    try:
        tree = ast.parse(f"({_without_names(text, names)})", mode="eval")
    except SyntaxError as e:
        raise _problem(text, (e.offset or 2) - 2, "it cannot be read from there on") from e
    return Query(text, tuple(dict.fromkeys(names.values())), _Compiler(text, names).test(tree.body))


def _without_names(text: str, names: dict[int, str]) -> str:
    """The text with so many underscores for each name, as Python has none like `test/acc`. `names`: by their place."""

    def replaced(token: re.Match[str]) -> str:
        name = token["quoted"] or token["name"]
        if name is None or token["name"] in _WORDS:
            return token[0]
        if token["name"] in _CONSTANTS:
            return _CONSTANTS[name]
        names[len(text[: token.start()].encode())] = name
        return "_" * len(token[0].encode())

    return _TOKEN.sub(replaced, text)


class _Compiler:
    """Makes a test of a tree that stands in parentheses."""

    def __init__(self, text: str, names: Mapping[int, str]) -> None:
        self._text = text
        self._names = names

    def test(self, node: ast.expr) -> _Part:
        """Whether something holds for what a lookup finds."""
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                parts = [self.test(value) for value in values]
                return lambda lookup: all(_is_true(part(lookup)) for part in parts)
            case ast.BoolOp(values=values):
                parts = [self.test(value) for value in values]
                return lambda lookup: any(_is_true(part(lookup)) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                part = self.test(operand)
                return lambda lookup: not _is_true(part(lookup))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [self._side(side) for side in (left, *comparators)]
                holds = [self._comparison(op, node) for op in ops]
                return lambda lookup: _all_hold(holds, [side(lookup) for side in sides])
        if isinstance(node, ast.Tuple | ast.List):
            raise self._refusal(node, "there is no condition")
        return self._side(node)

    def _side(self, node: ast.expr) -> _Part:
        """What stands beside an operator."""
        match node:
            case ast.Name(col_offset=offset):
                name = self._names[offset - 1]
                return lambda lookup: lookup(name)
            case ast.Constant(value=str() | int() | float() | None as value):
                return lambda lookup: value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return lambda lookup: -value
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                parts = [self._side(element) for element in elements]
                return lambda lookup: [part(lookup) for part in parts]
        raise self._refusal(node, "it is no condition, name, text or number")

    def _comparison(self, op: ast.cmpop, node: ast.expr) -> Callable[[Any, Any], bool]:
        if type(op) in _ORDERS:
            order = _ORDERS[type(op)]
            return lambda left, right: _in_order(order, left, right)
        match op:
            case ast.Eq():
                return _equal
            case ast.NotEq():
                return lambda left, right: not _equal(left, right)
            case ast.In():
                return _among
            case ast.NotIn():
                return lambda left, right: not _among(left, right)
        raise self._refusal(node, "its operator is none of ==, !=, <, <=, >, >=, in, not in")

    def _refusal(self, node: ast.expr, why: str) -> ConfigError:
        return _problem(self._text, node.col_offset - 1, why)


def _all_hold(holds: list[Callable[[Any, Any], bool]], values: list[Any]) -> bool:
    return all(hold(left, right) for hold, (left, right) in zip(holds, pairwise(values), strict=True))


def _is_true(value: Any) -> bool:
    """A name alone holds where the run has it, and it is neither false nor zero."""
    return value not in (None, False, 0, "", "false", "null", ())


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, tuple) or isinstance(right, tuple):
        several, one = (left, right) if isinstance(left, tuple) else (right, left)
        return any(_equal(value, one) for value in several)
    for this, other in ((left, right), (right, left)):
        if this is None:
            return other in (None, "null")
        if isinstance(this, bool):
            return bool(other == str(this).lower() or other is this)
        if isinstance(this, int | float):
            return _number(other) == this
    return bool(left == right)


def _among(left: Any, right: Any) -> bool:
    return any(_equal(left, value) for value in (right if isinstance(right, list) else [right]))


def _in_order(order: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    """Numbers have an order; what is none, or not there, holds in no comparison."""
    first, second = _number(left), _number(right)
    return first is not None and second is not None and order(first, second)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _problem(text: str, at: int, why: str) -> ConfigError:
    """What is wrong with the filter, with a mark below the place (a byte of the text)."""
    column = len(text.encode()[: max(at, 0)].decode(errors="ignore"))
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
    hints = [hint for sign, hint in _HINTS.items() if re.search(sign, unquoted)]
    fix = " ".join([*hints[:1], "Text stands in quotes, names do not:"])
    return ConfigError(f'--query: {why}:\n  {text}\n  {" " * column}^\nFix: {fix} --query "{EXAMPLE}"')
