"""Where a value comes from: every file and override that sets it, in the order in which they apply."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from hpcexp.compose.composer import Composer
from hpcexp.compose.sources import describe, packaged_conf
from hpcexp.compose.yaml_files import read_config_text
from hpcexp.errors import ConfigError, suggest
from hpcexp.schema import keys


@dataclass(frozen=True)
class ValueOrigin:
    """One file or override that sets a key."""

    source: str
    """`file:line`, or `command line`."""
    value: str


def blame(composer: Composer, overrides: list[str], key: str) -> list[ValueOrigin]:
    """The origins of `key`, the last of which counts; ConfigError where nothing sets it."""
    defaults = composer.hydra.config_loader.compute_defaults_list(composer.config_name, overrides, RunMode.RUN)
    dirs = composer.dirs_of(overrides)
    origins = [*_of_schema(key)]
    known: set[str] = set()
    for default in defaults.defaults:
        file = _file(dirs, default.config_path or "")
        if file is not None:
            tree = yaml.compose(read_config_text(file), Loader=yaml.SafeLoader)
            source = describe(file, composer.project)
            chosen = _choosers(overrides, default.config_path or "") + _shadowed(composer.project, dirs, file)
            origins += [
                replace(o, source=o.source + chosen) for o in _of_node(tree, default.package or "", key, source)
            ]
            known.update(_keys(tree, default.package or ""))
    origins += _of_overrides(overrides, key)
    if not origins:
        near = suggest(key, known | _schema_keys())
        raise ConfigError(f"--blame {key}: nothing sets {key}{'; ' + near if near else '.'}")
    return origins


def _file(dirs: Sequence[Path], config_path: str) -> Path | None:
    for directory in dirs:
        file = directory / (config_path if config_path.endswith(".yaml") else f"{config_path}.yaml")
        if file.is_file():
            return file
    return None


def _shadowed(project: Path, dirs: Sequence[Path], file: Path) -> str:
    """Which packaged file a project's file stands before."""
    packaged = packaged_conf()
    owner = next(d for d in dirs if file.is_relative_to(d))
    hidden = packaged / file.relative_to(owner)
    return f" (shadows {describe(hidden, project)})" if owner != packaged and hidden.exists() else ""


def _of_schema(key: str) -> Iterator[ValueOrigin]:
    """The default in the schema, with the line of the field."""
    owner, _, name = key.rpartition(".")
    cls = _section_class(owner)
    defaults = {f.name: f.default for f in dataclasses.fields(cls)} if cls else {}
    default: Any = defaults.get(name, dataclasses.MISSING)
    if cls is None or owner in keys.OPEN_SECTIONS or default in (dataclasses.MISSING, keys.MISSING):
        return
    file = Path(keys.__file__)
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id == name:
                    yield ValueOrigin(f"hpcexp/schema/keys.py:{item.lineno} (default)", _yaml(default))


def _section_class(section: str) -> Any:
    """The schema's class of a section; None where it has none."""
    if not section:
        return keys.Config
    classes = {n.lower(): c for n, c in vars(keys).items() if dataclasses.is_dataclass(c)}
    return classes.get(section)


def _schema_keys() -> set[str]:
    top = [f.name for f in dataclasses.fields(keys.Config)]
    below = {f"{s}.{f.name}" for s in top if _section_class(s) for f in dataclasses.fields(_section_class(s))}
    return {*top, *below}


def _of_node(tree: yaml.Node | None, package: str, key: str, source: str) -> Iterator[ValueOrigin]:
    for name, node in _leaves(tree, package):
        if name == key or name.startswith(f"{key}."):
            text = _text(node) if name == key else f"{name}: {_text(node)}"
            yield ValueOrigin(f"{source}:{node.start_mark.line + 1}", text)


def _keys(tree: yaml.Node | None, package: str) -> set[str]:
    return {name for name, _ in _leaves(tree, package)}


def _leaves(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if not prefix and key.value in ("defaults", "hydra"):
            continue
        name = f"{prefix}.{key.value}" if prefix else str(key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _of_overrides(overrides: list[str], key: str) -> Iterator[ValueOrigin]:
    for override in OverridesParser.create().parse_overrides(overrides):
        sets_all = isinstance(override.value(), dict) and key.startswith(f"{override.key_or_group}.")
        if override.key_or_group == key or sets_all:
            yield ValueOrigin("command line", str(override.input_line))


def _choosers(overrides: list[str], config_path: str) -> str:
    group, _, option = config_path.partition("/")
    for override in overrides:
        if option and override.lstrip("+") == f"{group}={option}":
            return f" (chosen by {override} on the command line)"
    return ""


def _text(node: yaml.Node) -> str:
    return " ".join(yaml.serialize(node, width=10**6).removesuffix("...\n").split())


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value)).removesuffix("\n...\n").strip()
