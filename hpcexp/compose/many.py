"""Many jobs composed: Hydra reads files once for each choice of them, and each job only puts its own values in.

Hydra applies overrides of values last, one after the other, to the tree that the files have made, and resolves nothing
before. So jobs that choose the same files share that tree. Each job's values are put in by the function that Hydra uses
itself, and taken out again. Where that could give another result, Hydra composes the job as it would any other.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, TypeGuard

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, Node, OmegaConf, ValueNode

from hpcexp.compose.composer import Composed, Composer, as_given, choices, experiment_file, plain_section
from hpcexp.compose.failures import FAILURES
from hpcexp.compose.free_sections import free_sections, have_null_groups, section_problems
from hpcexp.compose.resolvers import knowing, plain_runtime

TREES = 256
"""How many trees are held at a time, each of a hundred kilobytes."""

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)*\}")
"""An interpolation that is no more than the absolute name of another key."""


class Many:
    """Composes jobs to what `Composer.compose` gives for each, in half a millisecond where they differ in a few values.

    Files are read when a job is the first to choose them, and not again.
    """

    def __init__(self, composer: Composer, shared: Sequence[str] = (), of_command: DictConfig | None = None) -> None:
        """`shared`: overrides that all jobs begin with, as those of Hydra's own node in a sweep.

        `of_command`: the command line composed for a multirun; None for a sweep in a file.
        """
        self._composer, self._of_command = composer, of_command
        self._shared = list(shared)
        self._parsed = cache(OverridesParser.create().parse_override)
        self._repository = cache(self._new_repository)
        self._is_group = cache(lambda key, hydra: self._repository(hydra).group_exists(key))
        self._tree = lru_cache(TREES)(self._new_tree)

    def compose(self, overrides: Sequence[str]) -> Composed:
        """The job's experiment. What does not compose is left out and named in `problems`."""
        given = [*self._shared, *overrides]
        try:
            return self._from_tree(self._composer.repaired(given))
        except (_OnlyHydraKnows, *FAILURES):
            return self._composer.compose(given, in_sweep=True, of_command=self._of_command)

    def _from_tree(self, overrides: list[str]) -> Composed:
        parsed = [self._parsed(override) for override in overrides]
        files, values = self._split(parsed)
        tree = self._tree(files)
        task = tuple(as_given(str(o.input_line)) for o in parsed if not o.is_hydra_override())
        config = tree.config(values)
        return Composed(config, task, dict(tree.choices), tree.problems, tree.experiment_file)

    def _split(self, overrides: Sequence[Override]) -> tuple[tuple[str, ...], list[Override]]:
        """What chooses files or is about Hydra's own node, and values in the order in which they were given."""
        hydra = tuple(str(o.input_line) for o in overrides if _is_hydra(o))
        files: list[str] = []
        values: list[Override] = []
        for override in overrides:
            if override.is_sweep_override() or (_is_hydra(override) and values):
                raise _OnlyHydraKnows
            is_value = isinstance(override.value(), dict) or not self._is_group(override.key_or_group, hydra)
            if is_value and not _is_hydra(override):
                values.append(override)
            else:
                files.append(str(override.input_line))
        return tuple(files), values

    def _new_repository(self, hydra: tuple[str, ...]) -> Any:
        """The config files with the search path that overrides of Hydra's node, or the primary config, make."""
        loader = self._composer.loader
        return loader._parse_overrides_and_create_caching_repo(self._composer.config_name, list(hydra))[1]

    def _new_tree(self, files: tuple[str, ...]) -> _Tree:
        loader = self._composer.loader
        cfg = loader.load_configuration(self._composer.config_name, list(files), RunMode.RUN)
        return _Tree(cfg, self._composer.job_problems(cfg, self._of_command))


class _OnlyHydraKnows(Exception):  # noqa: N818 - the name says what happened
    """It is not certain that the shared tree becomes what Hydra would compose."""


class _Tree:
    """The configuration that the chosen files give, and the one with a job's values in it."""

    def __init__(self, cfg: DictConfig, problems: Sequence[str]) -> None:
        self.choices, self.experiment_file = choices(cfg), experiment_file(cfg)
        self.problems = (*problems, *section_problems(cfg))
        self._root = cfg
        # A job's configuration cannot refer to Hydra's node, as in `composed`.
        have_null_groups(cfg)
        self._free = free_sections(cfg)
        self._runtime = plain_runtime(cfg)
        del _content(cfg)["hydra"]
        self._reads = _reads(_content(cfg))
        self._resolved: dict[str, Any] = {}
        """Sections as the files alone make them."""

    def config(self, values: Sequence[Override]) -> dict[str, Any]:
        """Everything resolved, with `values` in it."""
        changed = {override.key_or_group.partition(".")[0] for override in values}
        with knowing(self._runtime), self._holding(values):
            OmegaConf.clear_cache(self._root)
            sections = [key for key in _content(self._root) if key not in self._free]
            return {str(key): self._section(key, changed) for key in sections}

    @contextmanager
    def _holding(self, values: Sequence[Override]) -> Iterator[None]:
        """Have the tree hold `values`. What they change is a copy, which the original replaces afterwards."""
        before = []
        try:
            for override in values:
                mapping, key = self._mapping(override)
                content = _content(mapping)
                before.append((mapping, content))
                copied = {key: copy.deepcopy(content[key])} if key in content else {}
                mapping.__dict__["_content"] = {**content, **copied}
                ConfigLoaderImpl._apply_overrides_to_config([override], self._root)
            yield
        finally:
            for mapping, content in reversed(before):
                mapping.__dict__["_content"] = content

    def _mapping(self, override: Override) -> tuple[DictConfig, str]:
        """The innermost mapping that the override changes, and under which key; what is beside it stays as it is."""
        way = override.key_or_group.split(".")
        mapping: DictConfig = self._root
        while len(way) > 1 and _is_mapping(inner := _content(mapping).get(way[0])):
            mapping, way = inner, way[1:]
        node = _content(mapping).get(way[0])
        if node is not None and any(_interpolations(node)):
            # What it refers to may be changed in its stead, or asked for.
            is_replaced = len(way) == 1 and isinstance(node, ValueNode) and _sets_single_value(override)
            if not is_replaced:
                raise _OnlyHydraKnows
        return mapping, way[0]

    def _section(self, key: str, changed: set[str]) -> Any:
        reads = self._reads.get(key)
        if reads is None or reads & changed:
            return plain_section(self._root, key)
        if key not in self._resolved:
            self._resolved[key] = plain_section(self._root, key)
        return _copied(self._resolved[key])


def _is_hydra(override: Override) -> bool:
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _sets_single_value(override: Override) -> bool:
    """Whether it is no deletion, no addition that must not find anything, and no mapping or list."""
    return not (override.is_delete() or override.is_add() or isinstance(override.value(), dict | list))


def _is_mapping(node: Node | None) -> TypeGuard[DictConfig]:
    return isinstance(node, DictConfig) and isinstance(node._value(), dict)


def _content(node: Node) -> dict[str, Node]:
    """The nodes of a mapping, as they are, unresolved."""
    content: dict[str, Node] = node.__dict__["_content"]
    return content


def _interpolations(node: Node) -> Iterator[str]:
    """Every text in a node that is to be resolved."""
    value = node._value()
    if isinstance(value, str) and "${" in value:
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for child in inner:
        if isinstance(child, Node):
            yield from _interpolations(child)


def _reads(sections: Mapping[str, Node]) -> dict[str, set[str]]:
    """Section → all sections whose content it is made of, itself among them. Left out is one that cannot tell."""
    references = {key: list(map(_REFERENCE.fullmatch, _interpolations(node))) for key, node in sections.items()}
    reads = {key: {key, *(m[1] for m in found if m)} for key, found in references.items() if all(found)}
    while True:
        closed = {key: read for key, read in reads.items() if read <= reads.keys()}
        wider = {key: {far for near in read for far in reads[near]} for key, read in closed.items()}
        if wider == reads:
            return reads
        reads = wider


def _copied(value: Any) -> Any:
    """Plain data that shares nothing that could be changed."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
