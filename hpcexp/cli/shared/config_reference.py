"""Reference pages of the configuration, from the schema and the config files.

`python -m hpcexp.cli.shared.config_reference DIRECTORY` writes them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

from hpcexp.checks.values import GLOBAL_GROUPS, field_types, typed
from hpcexp.compose.sources import packaged_conf
from hpcexp.errors import ConfigError, did_you_mean, listed, suggest
from hpcexp.files.atomic import write_atomic
from hpcexp.schema.keys import MISSING, OPEN_SECTIONS, Config
from hpcexp.schema.sweep import Budget, Search, SweepFile


@dataclasses.dataclass(frozen=True)
class Key:
    """One documented key."""

    name: str
    type: str
    default: str
    range: str
    text: str


def sections() -> dict[str, type]:
    """Section → the class that documents it; keys outside the sections are under the empty name."""
    typed_ones: dict[str, type] = {n: t for n, t in field_types(Config).items() if hasattr(t, "__dataclass_fields__")}
    return {"": Config, **typed_ones, **OPEN_SECTIONS, "sweep": SweepFile}


def keys(section: str) -> list[Key]:
    """The documented keys of a section, in the order of the schema. A sweep's file has its keys at the top level."""
    prefix = f"{section}." if section not in ("", "sweep") else ""
    below = [*_keys(Search, "search."), *_keys(Budget, "budget.")] if section == "sweep" else []
    return [*_keys(sections()[section], prefix), *below]


def _keys(cls: type, prefix: str) -> list[Key]:
    texts = _docstrings(cls)
    fields: Any = dataclasses.fields(cls)
    return [_key(f"{prefix}{f.name}", f, field_types(cls)[f.name], texts[f.name]) for f in fields if f.name in texts]


def options(group: str, dirs: Sequence[Path]) -> dict[str, str]:
    """Option of a config group → its file's text, without Hydra's package line; an earlier directory shadows."""
    files = {f.stem: f for d in reversed(dirs) for f in (d / group).glob("*.yaml")}
    return {name: _text(files[name]) for name in sorted(files)}


def groups(dirs: Sequence[Path]) -> list[str]:
    """The config groups in `dirs`."""
    return sorted({d.name for place in dirs for d in place.iterdir() if d.is_dir() and any(d.glob("*.yaml"))})


def page(topic: str) -> str:
    """Markdown page of a group or section."""
    lines = [f"# {topic or 'Keys outside any group'}", ""]
    if topic in sections():
        lines += [(sections()[topic].__doc__ or "").strip(), "", *_table(keys(topic)), ""]
    if topic in groups([packaged_conf()]):
        lines += ["## Options", ""]
        for name, header in options(topic, [packaged_conf()]).items():
            lines += [f"### `{topic}={name}`", "", "```yaml", header, "```", ""]
    return "\n".join(lines)


def explain(word: str, dirs: Sequence[Path]) -> str:
    """Plain text about a group, option (`model=cnn`), section or key; ConfigError if none has that name."""
    everything = {k.name: k for section in sections() for k in keys(section)}
    group, equals, option = word.partition("=")
    if equals and (group in everything or group in groups(dirs)):
        return _explained(everything[group]) if group in everything else _explained_option(group, option, dirs)
    if word in everything:
        return _explained(everything[word])
    text = [_explained(k) for k in everything.values() if k.name.startswith(f"{word}.")]
    text += [_explained(k) for k in keys(word)] if word == "sweep" else []
    text += [f"{word}={name}\n{indent(file, '    ')}" for name, file in options(word, dirs).items()]
    if text:
        return "\n".join(text)
    near = suggest(group, [*everything, *groups(dirs)])
    unknown = f"There is no group or key '{word}'{'; ' + near if near else '.'}"
    raise ConfigError(f"{unknown}\nGroups: {listed(groups(dirs))}.")


def _explained_option(group: str, option: str, dirs: Sequence[Path]) -> str:
    """An option's file, and what the keys in it mean."""
    there = options(group, dirs)
    if option not in there:
        raise ConfigError(
            f"{group}={option}: there is no option '{option}' in {group}.\n"
            f"Fix: {did_you_mean(option, there)}Options: {listed(there)}."
        )
    named = set(_names(there[option], "" if group in GLOBAL_GROUPS else f"{group}."))
    text = [_explained(k) for section in sections() for k in keys(section) if k.name in named]
    return "\n".join([f"{group}={option}", indent(there[option], "    "), *text])


def _names(text: str, prefix: str) -> Iterator[str]:
    """Dotted names of all keys in a config file; none if it is not YAML, which composing reports."""
    with contextlib.suppress(yaml.YAMLError):
        yield from _below(yaml.safe_load(text), prefix)


def _below(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _below(value, f"{prefix}{key}.")


def _explained(key: Key) -> str:
    return f"{key.name}  ({key.type}{key.range}; default {key.default})\n    {key.text}"


def write_pages(directory: Path) -> None:
    """A page for each group and section, and an index."""
    topics = sorted({*groups([packaged_conf()]), *filter(None, sections())})
    for topic in topics:
        write_atomic(directory / f"{topic}.md", page(topic))
    lines = [
        "# Configuration",
        "",
        "All config groups and keys. `hpcexp help`, plus a group, `GROUP=OPTION` or a key, prints the same text.",
        "`make docs` writes these pages from `hpcexp/schema/` and `conf/`.",
        "",
        *_table(keys("")),
        "",
    ]
    write_atomic(directory / "README.md", "\n".join([*lines, *(f"- [{t}]({t}.md)" for t in topics), ""]))


def _key(name: str, field: Any, annotation: Any, text: str) -> Key:
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    if default == MISSING:
        shown = "none: required, or set by the group's file"
    else:
        shown = "as below" if dataclasses.is_dataclass(default) else f"`{typed(default)}`"
    return Key(name, _type_name(annotation), shown, _range(field.metadata), text)


def _range(bounds: Any) -> str:
    words = [f"> {bounds['above']}"] if "above" in bounds else []
    words += [f"≥ {bounds['least']}"] if "least" in bounds else []
    words += [f"≤ {bounds['most']}"] if "most" in bounds else []
    words += [" | ".join(map(str, bounds["options"]))] if "options" in bounds else []
    return f", {', '.join(words)}" if words else ""


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _table(rows: list[Key]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for k in rows:
        yield f"| `{k.name}` | {(k.type + k.range).replace('|', chr(92) + '|')} | {k.default} | {k.text} |"


def _docstrings(cls: type) -> dict[str, str]:
    """Field → the docstring under it."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    found = {}
    for item, below in pairwise(body):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[item.target.id] = " ".join(str(below.value.value).split())
    return found


def _text(file: Path) -> str:
    return "\n".join(
        line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# @")
    )


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
