"""JSON and YAML from files, decoded into types with limits, so that no content can stop or crash a reader.

`json` and `yaml` themselves accept what breaks later: a list instead of an object, 10^400, 100,000 nested brackets
(which end the process within libyaml), aliases that expand without end. Whoever reads a file back decodes it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

from hpcexp.files.untrusted import MAX_RECORD_BYTES, UnusableFileError, read_bytes

T = TypeVar("T")

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
"""Unix time; the upper limit is the year 2286, beyond which not every C library has a calendar."""
Duration = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
"""Seconds that something took."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of things; what SQLite and JavaScript hold exactly."""
ProcessId = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]

_MAX_DEPTH = 64
"""Of nested lists and mappings. A configuration has about ten."""
_SUSPICIOUS_BRACKETS = 256
"""Fewer cannot nest deeper than the limit by much, and are not looked at one by one."""
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEP_INDENT = re.compile(rf"^(?: {{{2 * _MAX_DEPTH}}}|(?:- ?|\? ?){{{_MAX_DEPTH}}})", re.MULTILINE)
_ALIAS = re.compile(r"(?:^|[\s\[{,:-])\*[^\s*]")


def read_json(path: Path, kind: type[T], limit: int = MAX_RECORD_BYTES) -> T:
    """The JSON document in `path` as a `kind`.

    FileNotFoundError where there is none; UnusableFileError where it is no regular file, too
    large, or of another shape.
    """
    content = read_bytes(path, limit)
    try:
        return decode(content.decode(), kind)  # text first: msgspec does not look at what it passes over
    except ValueError as e:
        raise UnusableFileError(path, str(e)) from e


def read_plain(path: Path) -> dict[str, Any]:
    """The JSON object in `path` as plain data; empty where there is no file. UnusableFileError where it is damaged."""
    try:
        value = read_json(path, dict[str, Any])
        check_depth(value)
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UnusableFileError(path, str(e)) from e
    return value


def decode(content: bytes | str, kind: type[T]) -> T:
    """A JSON text as a `kind`; ValueError says what is wrong with it."""
    data = content.encode() if isinstance(content, str) else content
    if data.count(b"[") + data.count(b"{") > _SUSPICIOUS_BRACKETS and _json_depth(data) > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as e:
        raise ValueError(_lower(str(e))) from e
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def convert(value: Any, kind: type[T]) -> T:
    """Plain data as a `kind`, of which lists become tuples and mappings dataclasses; ValueError says what is wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.MsgspecError as e:
        raise ValueError(_lower(str(e))) from e


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """A record as JSON holds it, without what is not known."""
    return {key: value for key, value in msgspec.to_builtins(record).items() if value is not None}


def parse_yaml(text: str) -> Any:
    """A YAML text as plain data; yaml.YAMLError where it is no YAML, is nested too deeply, or has aliases.

    Aliases are refused as a few lines of them expand to any size; nothing that hpcexp writes has any.
    """
    is_suspicious = (
        text.count("[") + text.count("{") > _SUSPICIOUS_BRACKETS
        or _DEEP_INDENT.search(text) is not None
        or _ALIAS.search(text) is not None
    )
    if is_suspicious:
        _check_events(text)
    return yaml.load(text, Loader=_YAML_LOADER)  # noqa: S506 - a safe loader


def sortable(value: Any) -> Any:
    """Plain data with keys that JSON can sort: those that are no text say their type, as `{1: a, "1": b}` has two."""
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else f"{type(k).__name__} {k}": sortable(v) for k, v in value.items()}
    return [sortable(v) for v in value] if isinstance(value, list | tuple) else value


def check_depth(value: Any) -> None:
    """ValueError where plain data is nested deeper than any document may be."""
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, Mapping) else parent if isinstance(parent, list) else ())
        ]
        depth += 1


def _check_events(text: str) -> None:
    """YAMLError for an alias or too deep a nesting. Events come one by one: unlike loading, that needs no stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_YAML_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it has the alias *{event.anchor}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise yaml.YAMLError("it is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _json_depth(data: bytes) -> int:
    """How deeply a JSON text nests."""
    depth = deepest = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', data, re.DOTALL):
        if (character := token[0]) in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in b"]}":
            depth -= 1
    return deepest


def _lower(text: str) -> str:
    """A message of msgspec as the end of a sentence."""
    return text if text.startswith("JSON") else text[:1].lower() + text[1:]
