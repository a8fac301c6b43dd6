"""Values of YAML in Hydra's grammar of overrides."""

from __future__ import annotations

import json
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from hpcexp.errors import ConfigError

_PLAIN = re.compile(r"[\w\-./:%@]+")
_ESCAPED = re.compile(r"[\\()\[\]{}:=, \t]")


def quoted(value: Any) -> str:
    """A value as it is typed in an override, which gives the same value; ConfigError for a key that none can have."""
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and _parsed(value) == value
        return value if is_plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_key(key)}:{quoted(v)}" for key, v in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _key(key: Any) -> str:
    """A key of a mapping: the grammar knows no quotes there."""
    text = _ESCAPED.sub(r"\\\g<0>", key) if isinstance(key, str) else quoted(key)
    read = _parsed(f"{{{text}:0}}")
    if not (isinstance(read, dict) and [(key, type(key))] == [(k, type(k)) for k in read]):
        raise ConfigError(f"{key!r}: an override cannot give this key of a mapping.\nFix: give it in a config file.")
    return text


def _parsed(text: str) -> Any:
    try:
        return OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return None
