"""A filter over what is recorded: `config.optimizer.lr < 0.01 and test/acc >= 0.9 and sweep = "lr"`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from hpcexp.errors import ConfigError

EXAMPLE = "model = 'cnn' and optimizer.lr < 0.01 and test/acc >= 0.9"

Value = str | float | bool | None | tuple[str, ...]
"""None: there is none. Several texts: one of them is enough."""
Lookup = Callable[[str], Value]
"""Name → what a run has under it."""
_Part = Callable[[Lookup], Any]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'[^']*'|"[^"]*")
    | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | `(?P<quoted>[^`]+)`
    | (?P<word>[^\W\d][\w./:-]*)
    | (?P<sign>==|!=|<=|>=|[=<>(),\[\]])
    )""",
    re.VERBOSE,
)
_WORDS = frozenset(("and", "or", "not", "in"))
_CONSTANTS: Mapping[str, Value] = {"true": True, "false": False, "null": None}
_HINTS = {"&": "and", "|": "or", "!": "not …", "<>": "!="}
"""What others write → how it is written here."""
_DEEPEST = 100
"""Parentheses in parentheses."""


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
    parser = _Parser(text)
    test = parser.whole()
    return Query(text, tuple(dict.fromkeys(parser.names)), test)


class _Token(NamedTuple):
    kind: str
    """`text`, `number`, `constant`, `name`, `sign` (also for words like `and`), or `end`."""
    text: str
    at: int


class _Parser:
    """Goes through the words once: or, and, not, comparison, value; each is made of those that bind closer."""

    def __init__(self, text: str) -> None:
        self.names: list[str] = []
        self._text = text
        self._tokens = self._read()
        self._next = 0
        self._depth = 0

    def whole(self) -> _Part:
        """The test that the text is."""
        test = self._any()
        if self._token.kind != "end":
            raise self._problem("an `and` or `or` is missing here, or there is too much")
        return test

    def _any(self) -> _Part:
        parts = [self._all()]
        while self._took("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else lambda lookup: any(_is_true(part(lookup)) for part in parts)

    def _all(self) -> _Part:
        parts = [self._one()]
        while self._took("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda lookup: all(_is_true(part(lookup)) for part in parts)

    def _one(self) -> _Part:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._problem(f"it is nested more than {_DEEPEST} deep")
        test = self._negated_or_compared()
        self._depth -= 1
        return test

    def _negated_or_compared(self) -> _Part:
        if self._took("not"):
            part = self._one()
            return lambda lookup: not _is_true(part(lookup))
        if self._took("("):
            part = self._any()
            self._expect(")")
            return part
        return self._comparison()

    def _comparison(self) -> _Part:
        """A name alone, or two sides; `0.8 < test/acc < 0.9` is both of its halves."""
        sides, conditions = [self._value()], []
        while (sign := self._sign()) is not None:
            sides.append(self._list() if sign.endswith("in") and self._token.text in ("(", "[") else self._value())
            conditions.append(_CONDITIONS[sign])
        if not conditions:
            return sides[0]
        halves = list(zip(conditions, sides, sides[1:], strict=False))
        return lambda lookup: all(holds(left(lookup), right(lookup)) for holds, left, right in halves)

    def _sign(self) -> str | None:
        """Take a comparison."""
        if self._took("not"):
            self._expect("in")
            return "not in"
        if self._token.kind != "sign" or self._token.text not in _CONDITIONS:
            return None
        return self._take().text

    def _list(self) -> _Part:
        closing = {"(": ")", "[": "]"}[self._take().text]
        parts = [self._value()]
        while self._took(","):
            parts.append(self._value())
        self._expect(closing)
        return lambda lookup: [part(lookup) for part in parts]

    def _value(self) -> _Part:
        if self._token.kind in ("sign", "end"):
            raise self._problem("a name, text or number is missing here")
        token = self._take()
        if token.kind == "name":
            self.names.append(token.text)
            return lambda lookup: lookup(token.text)
        value = _CONSTANTS[token.text] if token.kind == "constant" else token.text
        number = float(token.text) if token.kind == "number" else None
        return lambda lookup: value if number is None else number

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _took(self, sign: str) -> bool:
        is_here = self._token.kind == "sign" and self._token.text == sign
        self._next += is_here
        return is_here

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            raise self._problem(f"`{sign}` is missing here")

    def _read(self) -> list[_Token]:
        tokens, at, end = [], 0, len(self._text.rstrip())
        while at < end:
            found = _TOKEN.match(self._text, at)
            if found is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise _problem(self._text, at, "this cannot be read")
            tokens.append(_token(found))
            at = found.end()
        return [*tokens, _Token("end", "", end)]

    def _problem(self, why: str) -> ConfigError:
        return _problem(self._text, self._token.at, why)


def _token(found: re.Match[str]) -> _Token:
    [(kind, text)] = [(kind, text) for kind, text in found.groupdict().items() if text is not None]
    at = found.start(kind)
    if kind == "text":
        return _Token(kind, text[1:-1], at)
    if kind == "word":
        lower = text.lower()
        if lower in _CONSTANTS:
            return _Token("constant", lower, at)
        return _Token("sign", lower, at) if lower in _WORDS else _Token("name", text, at)
    return _Token("name" if kind == "quoted" else kind, text, at)


def _is_true(value: Any) -> bool:
    """A name alone holds where the run has it, and it is neither false nor zero."""
    return value not in (None, False, "", "false", "null", ()) and _number(value) != 0


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
    """What is wrong with the filter, with a mark below the mistake."""
    shown = re.sub(r"\s", " ", text)
    hint = next((f"`{right}` for `{wrong}`. " for wrong, right in _HINTS.items() if text[at:].startswith(wrong)), "")
    return ConfigError(
        f'--query: {why}:\n  {shown}\n  {" " * at}^\nFix: {hint}Text is quoted, names are not: --query "{EXAMPLE}"'
    )


_CONDITIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": _equal,
    "==": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": partial(_in_order, operator.lt),
    "<=": partial(_in_order, operator.le),
    ">": partial(_in_order, operator.gt),
    ">=": partial(_in_order, operator.ge),
    "in": _among,
    "not in": lambda left, right: not _among(left, right),
}
