"""Names as keys that every MLflow store can hold, one to one.

MLflow takes letters, digits and `_ - . space : /` in the name of a metric, parameter or tag, at most 250 characters,
and refuses one that is no plain path (`a//b`, `/a`, `a/../b`), as its file stores make it one. Databases whose texts
are compared without case, accents or trailing spaces (MySQL, SQL Server) take `F1` and `f1` for the same key.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")

_MAX_KEY = 250
_MAX_PART_BYTES = 240
"""Of a part between slashes, which file systems limit to 255 with what a store adds."""
_LEGAL = re.compile(r"[\w\-. :/]+")
_ILLEGAL = re.compile(r"[^\w\-. :/]")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}$")
_PLANE_END = "\uffff"
"""Some databases have no characters beyond."""
_DIGITS = (8, 16, 32, 64)
"""How much of the digest is added: more where that is taken."""


def legal_key(name: str) -> str:
    """`name` where every store takes it; otherwise what is left of it, with the start of a digest of the whole."""
    return name if _is_legal(name) else _digested(name, _DIGITS[0])


class KeyTable:
    """Names and their keys. A name keeps its key; of two names that a store may mix up, the second has a digest."""

    def __init__(self, keys: Mapping[str, str] | None = None, *, are_files: bool = False) -> None:
        """`keys`: name → key, as `keys` of an earlier table. `are_files`: a name's suffix stays its key's."""
        self.keys = dict(keys or {})
        self._are_files = are_files
        self._taken = set(map(folded, self.keys.values()))

    def __getitem__(self, name: str) -> str:
        """The key of a name, the same from now on."""
        key = self.keys.get(name)
        return self._add(name) if key is None else key

    @property
    def renamed(self) -> dict[str, str]:
        """The names whose keys are others."""
        return {name: key for name, key in self.keys.items() if name != key}

    def _add(self, name: str) -> str:
        longer = (_digested(name, digits, is_file=self._are_files) for digits in _DIGITS)
        candidates = [name, *longer] if _is_legal(name) else longer
        key = next(key for key in candidates if folded(key) not in self._taken)
        self._taken.add(folded(key))
        self.keys[name] = key
        return key


def keyed(values: Mapping[str, V]) -> dict[str, V]:
    """The values under the keys of their names."""
    table = KeyTable()
    return {table[name]: value for name, value in values.items()}


def renamed(names: Iterable[str]) -> dict[str, str]:
    """The names whose keys in `keyed` are others, and those."""
    table = KeyTable()
    for name in names:
        table[name]
    return table.renamed


def folded(key: str) -> str:
    """The same for keys that a database or file system may take for one."""
    decomposed = unicodedata.normalize("NFKD", key)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold().rstrip()


def _is_legal(name: str) -> bool:
    return (
        _LEGAL.fullmatch(name) is not None
        and len(name) <= _MAX_KEY
        and max(name) <= _PLANE_END
        and all(part not in ("", ".", "..") and len(part.encode()) <= _MAX_PART_BYTES for part in name.split("/"))
    )


def _digested(name: str, digits: int, *, is_file: bool = False) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    suffix = found[0] if is_file and (found := _SUFFIX.search(name)) else ""
    clean = _ILLEGAL.sub("_", "".join(c if c <= _PLANE_END else "_" for c in name.removesuffix(suffix)))
    parts = [part if part.strip(".") else "_" for part in clean.split("/") if part]
    longest = _MAX_KEY - digits - len(suffix) - 1
    return f"{'/'.join(map(_cut, parts))[:longest].rstrip('/') or '_'}-{digest}{suffix}"


def _cut(part: str) -> str:
    """As much of it as leaves room for a digest."""
    return part.encode()[: _MAX_PART_BYTES - _DIGITS[-1] - 12].decode(errors="ignore")


def flat(key: str) -> str:
    """A key as the name of one file: no key has a `~`."""
    return key.replace("/", "~")
