"""Keys whose values are texts, and texts that look like numbers: a label `007`, a run `5204e522`, an option `1`.

Hydra and YAML read a number there, which comes back as another text: `7`, `inf`, `1.0`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from hpcexp.checks.values import field_types
from hpcexp.schema import keys as schema

_NUMBER = r"[+-]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?|[+-]?(?:[iI][nN][fF]|[nN][aA][nN])"
_LITERAL = re.compile(rf"(?:{_NUMBER}|[tT][rR][uU][eE]|[fF][aA][lL][sS][eE])")
_QUOTED_LITERAL = re.compile(rf"'({_LITERAL.pattern})'")
_IN_MAPPING = re.compile(rf"(:\s*)({_LITERAL.pattern})(?=\s*[,}}])")
_CHOICE = re.compile(r"choice\((.*)\)")
_QUOTED, _PLAIN = r"\1'\2'", r"\1"
_FREE = "tracking.tags"
"""A mapping of the user's own keys, all with texts."""
_OF_HYDRA = frozenset({"hydra.sweeper.study_name", "hydra.sweeper.storage"})


def is_text(key: str) -> bool:
    """Whether hpcexp takes the value of a dotted key as a text."""
    return key in _text_keys() or key.startswith(f"{_FREE}.")


@cache
def _text_keys() -> frozenset[str]:
    found = set(_OF_HYDRA)
    sections = {**field_types(schema.Config), **schema.OPEN_SECTIONS}
    for section, kind in sections.items():
        if is_dataclass(kind):
            found.update(f"{section}.{key}" for key, hint in field_types(typing.cast(type, kind)).items() if _is(hint))
        elif _is(kind):
            found.add(section)
    return frozenset(found)


def _is(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set(typing.get_args(hint)) <= {str, type(None)}
    return hint is str


def with_texts(override: str, is_group: Callable[[str], bool], is_key: Callable[[str], bool] = is_text) -> str:
    """The override, with quotes around what looks like a number where a text or an option's name is meant."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if not equals or not re.search(r"\d|inf|nan|true|false", value, re.IGNORECASE):
        return override
    if name == _FREE:
        return f"{key}={_IN_MAPPING.sub(_QUOTED, value)}" if value.startswith("{") else override
    if not (is_key(name) or is_group(name.partition("@")[0])):
        return override
    inner = _CHOICE.fullmatch(value)
    words = (inner[1] if inner else value).split(",")
    if any(re.search(r"[\[\]{}()'\"]", word) for word in words):
        return override
    quoted = ",".join(f"'{word.strip()}'" if _LITERAL.fullmatch(word.strip()) else word for word in words)
    return f"{key}=choice({quoted})" if inner else f"{key}={quoted}"


def without_quotes(override: str) -> str:
    """The override as it was given before `with_texts`."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+").partition("@")[0]
    if equals and "'" in value and (is_text(name) or name == _FREE or "." not in name):
        plain = _QUOTED_LITERAL.sub(_PLAIN, value)
        return f"{key}={plain}"
    return override
