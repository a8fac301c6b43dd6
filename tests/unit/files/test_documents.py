"""JSON and YAML that no reader survives without limits, and what is read all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import Struct

from hpcexp.files.documents import check_depth, decode, parse_yaml, read_json
from hpcexp.files.untrusted import UnreadableFileError, UnusableFileError, open_regular


class Thing(Struct):
    """What a file may hold."""

    name: str
    size: float = 0.0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "input data was truncated"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"name":' * 100_000, "nested too deeply"),
        (b'{"name": "a", "size": 1e400}', r"number out of range - at `\$.size`"),
        (b'{"name": "a", "size": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"name": "a", "size": NaN}', "JSON is malformed"),
        (b'{"name": 3}', r"expected `str`, got `int` - at `\$.name`"),
        (b'{"size": 3}', "missing required field `name`"),
        (b'{"name": "a"} {"name": "b"}', "trailing characters"),
        (b'{"name": "a", "more": "\xff"}', "codec can't decode byte 0xff"),
        (b'\xef\xbb\xbf{"name": "a"}', "JSON is malformed"),
    ],
)
def test_json_of_another_shape_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    """By file and place, before anything is done with it."""
    (tmp_path / "thing.json").write_bytes(content)
    with pytest.raises(UnusableFileError, match=rf"thing\.json is damaged: .*{why}"):
        read_json(tmp_path / "thing.json", Thing)


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    """So that one directory may be read by two versions."""
    (tmp_path / "thing.json").write_text('{"name": "a", "size": 1, "colour": ["red"]}')
    assert Thing("a", 1.0) == read_json(tmp_path / "thing.json", Thing)


def test_brackets_in_texts_nest_nothing() -> None:
    """However many there are."""
    assert {"a": "[" * 1000, "b": '"' + "{" * 1000} == decode(
        '{"a": "' + "[" * 1000 + '", "b": "\\"' + "{" * 1000 + '"}', dict[str, Any]
    )


@pytest.mark.parametrize(
    "text",
    [
        "[" * 3_000_000,
        "a: " + "[" * 100_000 + "]" * 100_000,
        "{a: " * 1000,
        "\n".join(" " * i + "a:" for i in range(3000)),
        "- " * 5000 + "x",
        "? " * 5000 + "x",
    ],
)
def test_yaml_that_nests_too_deeply_is_refused(text: str) -> None:
    """Which would end the process: libyaml overflows its stack."""
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_aliases_are_refused() -> None:
    """A few lines of them expand to any size. What looks like one in a text is none."""
    for text in ("a: &x [1]\nb: *x", "a: &x {b: 1}\nc:\n  <<: *x", "- &a [x]\n- [*a, *a]"):
        with pytest.raises(yaml.YAMLError, match=r"it has the alias \*"):
            parse_yaml(text)
    assert {"a": "*x", "b": "1 *2", "c": ["*"]} == parse_yaml("a: '*x'\nb: 1 *2\nc: ['*']")


def test_a_yaml_object_of_python_is_none() -> None:
    """Nothing is run for it."""
    with pytest.raises(yaml.YAMLError):
        parse_yaml('a: !!python/object/apply:os.system ["true"]')


def test_plain_data_has_a_limit_too() -> None:
    """For data that comes from elsewhere than a file."""
    deep: Any = 1
    for _ in range(100):
        deep = {"a": [deep]}
    with pytest.raises(ValueError, match="nested too deeply"):
        check_depth(deep)
    check_depth({"a": [{"b": 1}]})


def test_what_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """And a file where a directory should be is named as that."""
    file = tmp_path / "thing.json"
    file.write_text("{}")
    file.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(UnreadableFileError, match=r"thing\.json cannot be read: Permission denied\.\nFix: "):
            open_regular(file)
    finally:
        os.seteuid(user)
    with pytest.raises(UnusableFileError, match="a directory that it is in is none"):
        open_regular(file / "below.json")
