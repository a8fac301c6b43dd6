"""Which settings of a composed experiment somebody asked for, and which are only defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpcexp.compose.sources import conf_dirs, describe, packaged_conf

_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)


def asked_for(
    paths: tuple[str, ...], overrides: tuple[str, ...], choices: Mapping[str, str], project: Path
) -> Iterator[tuple[str, str]]:
    """Settings at or below `paths` (`optimizer`, `task.loss`), and where they are asked for.

    On the command line, and in the project's own files of other groups, such as an experiment. What the chosen option
    of a group itself holds is a default: one has to be chosen. Who takes something out does not ask for it.
    """
    for override in overrides:
        key = re.split(r"[=@]", override.lstrip("+"), maxsplit=1)[0].replace("/", ".")
        if is_at_or_below(key, paths) and override.partition("=")[2] != "null":
            yield override, "command line"
    groups = {path.partition(".")[0] for path in paths}
    for group, choice in choices.items():
        if group not in groups and (file := _own_file(project, group, str(choice))):
            place = describe(file, project)
            yield from ((setting, place) for setting in _settings_in(file, paths))


def is_at_or_below(key: str, paths: Iterable[str]) -> bool:
    """Whether a key sets one of the paths, or something in it."""
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def _own_file(project: Path, group: str, choice: str) -> Path | None:
    """The file of an option, if it is not packaged."""
    for directory in conf_dirs(project, None):
        file = directory / group / f"{choice.removesuffix('.yaml')}.yaml"
        if file.is_file():
            return None if file.is_relative_to(packaged_conf()) else file
    return None


def _settings_in(file: Path, paths: tuple[str, ...]) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or not _GLOBAL.search(text):
        return
    for default in content.get("defaults") or []:
        for key, option in default.items() if isinstance(default, dict) else ():
            group = str(key).removeprefix("override ").strip().removeprefix("/").partition("@")[0]
            if option is not None and group.replace("/", ".") in paths:
                yield f"{group}={option}"
    for path in paths:
        found: Any = content
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        yield from _leaves(found, path)


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif node is not None:
        yield f"{path}={node}"
