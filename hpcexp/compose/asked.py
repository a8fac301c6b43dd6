"""Which settings of a composed experiment somebody asked for, and which are only defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpcexp.compose.sources import conf_dirs, describe, packaged_conf

COMMAND_LINE = "command line"
_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)


def asked_for(
    paths: tuple[str, ...],
    overrides: tuple[str, ...],
    choices: Mapping[str, str],
    project: Path,
    experiment_file: str | None = None,
) -> Iterator[tuple[str, str]]:
    """Settings at or below `paths` (`optimizer`, `task.loss`), and where they are asked for.

    On the command line, in the project's primary config, and in its files of other groups, such as an experiment. What
    the chosen option of a group itself holds is a default: one has to be chosen. Who takes something out does not ask
    for it. `experiment_file`: where the experiment is, if that is known.
    """
    for override in overrides:
        key = re.split(r"[=@]", override.lstrip("+"), maxsplit=1)[0].replace("/", ".")
        if is_at_or_below(key, paths) and override.partition("=")[2] != "null":
            yield override, COMMAND_LINE
    groups = {path.partition(".")[0] for path in paths}
    files = [_own_file(project, group, str(choice)) for group, choice in choices.items() if group not in groups]
    files += [_own(Path(experiment_file))] if experiment_file else []
    for file in dict.fromkeys(filter(None, files)):
        place = describe(file, project)
        yield from ((setting, place) for setting in _settings_in(file, paths))
    if (primary := project.resolve() / "conf" / "config.yaml").is_file() and _own(primary):
        place, content = describe(primary, project), yaml.safe_load(primary.read_text(encoding="utf-8"))
        yield from ((setting, place) for setting in _values_in(content, paths))


def is_at_or_below(key: str, paths: Iterable[str]) -> bool:
    """Whether a key sets one of the paths, or something in it."""
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def _own_file(project: Path, group: str, choice: str) -> Path | None:
    """The file of an option, if it is not packaged."""
    for directory in conf_dirs(project, None):
        file = directory / group / f"{choice.removesuffix('.yaml')}.yaml"
        if file.is_file():
            return _own(file.resolve())
    return None


def _own(file: Path) -> Path | None:
    """The file, if it is not packaged."""
    return None if file.is_relative_to(packaged_conf()) else file


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
    yield from _values_in(content, paths)


def _values_in(content: Any, paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        found = content
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        yield from _leaves(found, path)


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif node is not None:
        yield f"{path}={node}"
