"""Sections at the root that are the user's own: `vars`, and the config groups of a project.

Other keys refer to them by interpolation. What is referred to is part of the plan where it is used, and they themselves
are not.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import AnyNode, DictConfig, Node, OmegaConf

from hpcexp.checks.values import GLOBAL_GROUPS, unknown_key
from hpcexp.compose.hydra_settings import given_overrides
from hpcexp.errors import did_you_mean
from hpcexp.schema.keys import Config

VARS = "vars"
"""The section for values of the user's own."""
_KEYS = frozenset(field.name for field in dataclasses.fields(Config))
_NEAR = 0.85
"""Similarity from which a name is a misspelt key of hpcexp's: `optimiser`, but not `train`."""


def free_sections(cfg: DictConfig) -> frozenset[str]:
    """The keys at the root of Hydra's result that are the user's own."""
    return frozenset(map(str, content(cfg).keys() - _KEYS - {"hydra"}))


def section_problems(cfg: DictConfig) -> list[str]:
    """Keys at the root that are neither hpcexp's nor the user's own, and overrides that nothing refers to."""
    groups = {str(group).partition("/")[0].partition("@")[0] for group in cfg.hydra.runtime.choices}
    free = free_sections(cfg)
    problems, unknown = [], set[str]()
    for name in sorted(free - {VARS}):
        near = difflib.get_close_matches(name, _KEYS | {VARS}, n=1, cutoff=_NEAR)
        if name not in groups or near:
            unknown.add(name)
            own = "" if near else f" A value of your own: vars.{name}."
            problems.append(unknown_key(name, {*_KEYS, VARS, *(groups - {*GLOBAL_GROUPS, "hydra"})}) + own)
    given = given_overrides(cfg, "task")
    keys = [
        key
        for o in given
        if "." in (key := o.lstrip("+").partition("=")[0]) and key.partition(".")[0] in free - unknown
    ]
    if keys:
        texts = list(_interpolations(cfg))
        problems += [_unused(key, cfg) for key in keys if not _is_used(key, texts)]
    return problems


def have_null_groups(cfg: DictConfig) -> None:
    """Let `${norm}` be null where a group of the user's has no option chosen (`norm=null`)."""
    nodes = content(cfg)
    unchosen = [group for group, option in cfg.hydra.runtime.choices.items() if option is None]
    left_out = [o[1:] for o in given_overrides(cfg, "task") if o.startswith("~")]
    for group in (*unchosen, *left_out):
        if group.isidentifier() and group not in {*nodes, *_KEYS, *GLOBAL_GROUPS}:
            nodes[group] = AnyNode(None, key=group, parent=cfg)


def content(cfg: Node) -> dict[Any, Node]:
    """The nodes of a mapping, as they are, unresolved."""
    nodes: dict[Any, Node] = cfg.__dict__["_content"]
    return nodes


def _unused(key: str, cfg: DictConfig) -> str:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    siblings = [str(other) for other in content(node) if other != name] if isinstance(node, DictConfig) else []
    near = did_you_mean(name, siblings)
    return f"{key}: nothing refers to it.\nFix: {near}${{{key}}} where it is used, or leave it out."


def _is_used(key: str, texts: Iterable[str]) -> bool:
    parents = [key]
    while "." in parents[-1]:
        parents.append(parents[-1].rpartition(".")[0])
    # A relative interpolation may lead anywhere.
    return any("${." in t or key in t or any(f"{{{p}}}" in t or f":{p}}}" in t for p in parents) for t in texts)


def _interpolations(node: Any) -> Iterator[str]:
    value = node._value() if isinstance(node, Node) else node
    if isinstance(value, str) and "${" in value:
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in inner:
        yield from _interpolations(child)
