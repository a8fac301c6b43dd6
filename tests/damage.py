"""What can become of a file: forty kinds of damage, as disks, people, other programs and attackers do them."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

Damage = Callable[[Path, random.Random], object]


@cache
def other() -> Path:
    """A file of somebody's to which a link leads, that nothing may change."""
    file = Path(mkdtemp(), "other")
    file.write_text("not yours\n")
    return file


def _content(new: Callable[[bytes, random.Random], bytes]) -> Damage:
    """Other bytes in a file, or a new file where there was none."""

    def damage(path: Path, rng: random.Random) -> None:
        before = path.read_bytes() if path.is_file() else b'{"state": "finished"}'
        clear(path)
        path.write_bytes(new(before, rng))

    return damage


def _kind(make: Callable[[Path], object]) -> Damage:
    """Something else than a file."""

    def damage(path: Path, _: random.Random) -> None:
        clear(path)
        make(path)

    return damage


def _json(change: Callable[[Any, random.Random], Any]) -> Damage:
    """The first JSON document of a file changed; what is no JSON becomes one."""

    def new(before: bytes, rng: random.Random) -> bytes:
        first, newline, rest = (
            before.partition(b"\n") if before.lstrip()[:1] != b"{" or b"}\n{" in before else (before, b"", b"")
        )
        try:
            value = json.loads(first)
        except ValueError:
            value = {"text": first.decode(errors="replace")}
        return json.dumps(change(value, rng)).encode() + newline + rest

    return _content(new)


def _every(value: Any) -> Damage:
    """Every value of an object replaced by the same one."""
    return _json(lambda before, _: dict.fromkeys(before, value) if isinstance(before, dict) else value)


def _one(value: Any) -> Damage:
    """One value of an object, somewhere in it, replaced."""

    def change(before: Any, rng: random.Random) -> Any:
        if not isinstance(before, dict) or not before:
            return value
        key = rng.choice(sorted(before))
        inner = before[key]
        return {
            **before,
            key: change(inner, rng) if isinstance(inner, dict) and inner and rng.random() < 0.7 else value,
        }

    return _json(change)


def _without_one(before: Any, rng: random.Random) -> Any:
    if not isinstance(before, dict) or not before:
        return before
    gone = rng.choice(sorted(before))
    return {key: value for key, value in before.items() if key != gone}


def _flipped(before: bytes, rng: random.Random) -> bytes:
    if not before:
        return b"\x00"
    at = rng.randrange(len(before))
    return before[:at] + bytes([before[at] ^ (1 << rng.randrange(8))]) + before[at + 1 :]


def _sparse(path: Path, _: random.Random) -> None:
    clear(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _socket(path: Path) -> None:
    place = Path.cwd()
    os.chdir(path.parent)  # a socket's name has at most 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(place)


def clear(path: Path) -> None:
    """Take away what is at `path`, whatever that is."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f".{path.name}.gone"))
    else:
        path.unlink(missing_ok=True)


_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(9)
)

DAMAGES: dict[str, Damage] = {
    "removed": lambda path, _: clear(path),
    "empty": _content(lambda _b, _r: b""),
    "one byte": _content(lambda _b, _r: b"{"),
    "cut in half": _content(lambda b, _: b[: len(b) // 2]),
    "last byte gone": _content(lambda b, _: b[:-2]),
    "zeros": _content(lambda b, _: bytes(len(b))),
    "random bytes": _content(lambda b, r: r.randbytes(max(len(b), 64))),
    "a bit flipped": _content(_flipped),
    "no UTF-8": _content(lambda b, _: b.replace(b"e", b"\xe9", 3) or b"\xff"),
    "a byte order mark": _content(lambda b, _: b"\xef\xbb\xbf" + b),
    "UTF-16": _content(lambda b, _: b.decode(errors="replace").encode("utf-16")),
    "CRLF": _content(lambda b, _: b.replace(b"\n", b"\r\n")),
    "twice": _content(lambda b, _: b + b),
    "garbage behind": _content(lambda b, _: b + b"}}}\x00\x1b[2J"),
    "a list": _content(lambda _b, _r: b"[]"),
    "a number": _content(lambda _b, _r: b"3"),
    "null": _content(lambda _b, _r: b"null\n"),
    "a text": _content(lambda _b, _r: b'"finished"\n'),
    "an empty object": _content(lambda _b, _r: b"{}\n"),
    "NaN": _content(lambda _b, _r: b"NaN"),
    "nested lists": _content(lambda _b, _r: b"[" * 200_000),
    "nested objects": _content(lambda _b, _r: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "nested YAML": _content(lambda b, _: b + b"\nx: " + b"[" * 100_000 + b"]" * 100_000),
    "YAML aliases": _content(lambda _b, _r: _BOMB.encode()),
    "a YAML object": _content(lambda b, _: b + b'\nx: !!python/object/apply:os.system ["true"]\n'),
    "a key gone": _json(_without_one),
    "an unknown key": _json(lambda b, _: {**b, "of the future": [1]} if isinstance(b, dict) else b),
    "all null": _every(None),
    "all numbers": _every(-7),
    "all texts": _every("x"),
    "all lists": _every([[]]),
    "all objects": _every({"a": {"b": None}}),
    "one number beyond all": _one(10**400),
    "one number out of range": _one(-(10**15)),
    "one fraction": _one(0.5),
    "one control character": _one("\x1b]0;x\x07\r\n\x00\u202e"),
    "one long text": _one("x" * 1_000_000),
    "one lone surrogate": _one("\ud800"),
    "a directory": _kind(Path.mkdir),
    "a FIFO": _kind(os.mkfifo),
    "a socket": _kind(_socket),
    "a link to an endless device": _kind(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _kind(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _kind(lambda path: path.symlink_to("nowhere")),
    "a link to another file": _kind(lambda path: path.symlink_to(other())),
    "a terabyte of nothing": _sparse,
}
