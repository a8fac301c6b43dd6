"""What a user writes in YAML, as data: config files and sweeps by the same rules, which are OmegaConf's.

`1e-3` is a number, a date is a text, a key that occurs twice is a mistake. Text is UTF-8 in any locale.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from hpcexp.compose.texts import is_text
from hpcexp.errors import ConfigError
from hpcexp.text.formatting import near

_STR = "tag:yaml.org,2002:str"
_LITERALS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))


def read_config_text(file: Path) -> str:
    """The text of a file, without its byte order mark; ConfigError names the line that is not UTF-8."""
    return decoded(file.read_bytes(), near(file))


def decoded(content: bytes, name: str) -> str:
    """The text of a file that is called `name`."""
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise ConfigError(
            f"{name}:{line}: byte 0x{content[e.start]:02x} is not UTF-8; the file is probably Latin-1 or UTF-16.\n"
            "Fix: save it as UTF-8."
        ) from e


def load_yaml(text: str, name: str, package: str | None = None) -> Any:
    """The data in `text`; ConfigError with `name`, line and reason where it is no YAML.

    `package`: where Hydra puts the content, to read the keys there that are texts as they are written; None for what is
    no config file.
    """
    loader = _loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if package is not None:
            _keep_texts(node, package)
        return loader.construct_document(node)
    except yaml.YAMLError as e:
        raise ConfigError(_no_yaml(e, name)) from e
    finally:
        loader.dispose()


@cache
def _loader() -> Any:
    """OmegaConf's loader, with the parser in C where PyYAML has it."""
    omegaconf = get_yaml_loader()
    parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(parser):  # type: ignore[misc]
        yaml_implicit_resolvers = omegaconf.yaml_implicit_resolvers
        yaml_constructors = omegaconf.yaml_constructors

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            """ConstructorError where a key occurs twice."""
            keys: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        raise yaml.constructor.ConstructorError(None, None, f"{key.value} is twice", key.start_mark)
                    keys.add((key.tag, key.value))
            return super().construct_mapping(node, deep=deep)

    return Loader


def _no_yaml(error: yaml.YAMLError, name: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"{name}: this is not YAML: {error}."
    fix = "\nFix: indent with spaces." if re.search(r"\btab\b|'\\t'", str(problem)) else ""
    return f"{name}:{mark.line + 1}: this is not YAML: {problem}.{fix}"


def _keep_texts(root: yaml.Node, package: str) -> None:
    """Have `label: 1e5` and an option called `on` be the texts that they are."""
    for name, node in _scalars(root, package):
        if node.tag in _LITERALS and is_text(name):
            node.tag = _STR
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "defaults" and isinstance(value, yaml.SequenceNode):
                _keep_options(value)


def _scalars(node: yaml.Node, prefix: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    if isinstance(node, yaml.ScalarNode):
        yield prefix, node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _scalars(value, f"{prefix}.{key.value}" if prefix else key.value)


def _keep_options(node: yaml.Node) -> None:
    """All in a defaults list names groups and options."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _keep_options(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _keep_options(key)
            _keep_options(value)
    elif node.tag in _LITERALS:
        node.tag = _STR
