"""Reference pages of the configuration, written from the schema and the config files: `python -m hpcexp.docs DIR`."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpcexp import schema
from hpcexp.checks.values import field_types, typed
from hpcexp.compose.sources import packaged_conf
from hpcexp.errors import ConfigError, listed, suggest
from hpcexp.rundir import write_atomic


@dataclasses.dataclass(frozen=True)
class Key:
    """One documented key."""

    name: str
    type: str
    default: str
    range: str
    text: str


def sections() -> dict[str, type]:
    """Section → the class that documents it; the keys beside the sections are under the empty name."""
    typed_ones: dict[str, type] = {
        n: t for n, t in field_types(schema.Config).items() if hasattr(t, "__dataclass_fields__")
    }
    return {"": schema.Config, **typed_ones, **schema.OPEN_SECTIONS}


def keys(section: str) -> list[Key]:
    """The documented keys of a section, in the order of the schema."""
    cls = sections()[section]
    texts = _docstrings(cls.__name__)
    prefix = f"{section}." if section else ""
    fields: Any = dataclasses.fields(cls)
    return [_key(f"{prefix}{f.name}", f, field_types(cls)[f.name], texts[f.name]) for f in fields if f.name in texts]


def options(group: str) -> dict[str, str]:
    """Option of a config group → the comment at the head of its file."""
    files = sorted((packaged_conf() / group).glob("*.yaml"))
    return {f.stem: _header(f) for f in files}


def groups() -> list[str]:
    """The packaged config groups."""
    return sorted(d.name for d in packaged_conf().iterdir() if d.is_dir())


def page(topic: str) -> str:
    """Markdown page of a group or section."""
    lines = [f"# {topic or 'Keys outside any group'}", ""]
    if topic in sections():
        lines += [(sections()[topic].__doc__ or "").strip(), "", *_table(keys(topic)), ""]
    if topic in groups():
        lines += ["## Options", ""]
        for name, header in options(topic).items():
            lines += [f"### `{topic}={name}`", "", "```yaml", header, "```", ""]
    return "\n".join(lines)


def explain(word: str) -> str:
    """Plain text on a group, section or key; ConfigError where there is none of that name."""
    if word in sections() or word in groups():
        told = (
            [f"{k.name}  ({k.type}{k.range}; default {k.default})\n    {k.text}" for k in keys(word)]
            if word in sections()
            else []
        )
        files = [f"{word}={name}\n    " + header.replace("\n", "\n    ") for name, header in options(word).items()]
        return "\n".join([*told, *files])
    everything = {k.name: k for section in sections() for k in keys(section)}
    if word in everything:
        k = everything[word]
        return f"{k.name}  ({k.type}{k.range}; default {k.default})\n    {k.text}"
    near = suggest(word, [*everything, *groups()])
    raise ConfigError(f"There is no group or key '{word}'{'; ' + near if near else '.'}\nGroups: {listed(groups())}.")


def write_pages(directory: Path) -> None:
    """A page for each group and section, and an index."""
    topics = sorted({*groups(), *filter(None, sections())})
    for topic in topics:
        write_atomic(directory / f"{topic}.md", page(topic))
    lines = [
        "# Configuration",
        "",
        "Written by `make docs` from `hpcexp/schema.py` and `conf/`.",
        "",
        *_table(keys("")),
        "",
    ]
    write_atomic(directory / "README.md", "\n".join([*lines, *(f"- [{t}]({t}.md)" for t in topics), ""]))


def _key(name: str, field: Any, annotation: Any, text: str) -> Key:
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    shown = "set by the group's file" if default == schema.MISSING else f"`{typed(default)}`"
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
    yield "| key | type | default | what |"
    yield "|---|---|---|---|"
    for k in rows:
        yield f"| `{k.name}` | {(k.type + k.range).replace('|', chr(92) + '|')} | {k.default} | {k.text} |"


def _docstrings(class_name: str) -> dict[str, str]:
    """Field → the docstring under it."""
    tree = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    found = {}
    for item, below in pairwise(body):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[item.target.id] = " ".join(str(below.value.value).split())
    return found


def _header(file: Path) -> str:
    return "\n".join(
        line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# @")
    )


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
