"""Hydra's loader without what it does for each composition and never uses, which is a tenth of a plan's time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import wraps
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, Node, OmegaConf, open_dict

from hpcexp.errors import ConfigError


class _Repository(ConfigRepository):
    """Config files and structured configs.

    Hydra copies it for each composition, with every structured config of the process, so that it can replace the
    list of sources. Replacing the list in a shallow copy leaves the original as it was, too.
    """

    def __deepcopy__(self, memo: Any) -> _Repository:
        return copy.copy(self)


class _Loader(ConfigLoaderImpl):
    """Hydra's loader, which only warns of a search path that does not exist."""

    def _process_config_searchpath(self, *arguments: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            try:
                super()._process_config_searchpath(*arguments)
            except UserWarning as e:
                path = str(e).partition("path=")[2].partition(" is not")[0]
                raise ConfigError(
                    f"hydra.searchpath: there is no directory or package {path}.\n"
                    "Fix: a path from here, file:///absolute/path or pkg://package.directory."
                ) from e


def loader(search_path: ConfigSearchPathImpl) -> ConfigLoaderImpl:
    """Hydra's loader of configurations."""
    made = _Loader(config_search_path=search_path)
    made.repository = _Repository(search_path)
    _skip_unused_choices()
    _delete_null()
    return made


def _delete_null() -> None:
    """Have Hydra delete a key whose value is null (`~model.norm`), which it takes for a key that does not exist."""
    original = ConfigLoaderImpl._apply_overrides_to_config
    if not hasattr(original, "__wrapped__"):
        ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_with_null(original))  # type: ignore[method-assign]


def _with_null(apply: Callable[..., None]) -> Callable[..., None]:
    @wraps(apply)
    def applied(overrides: Sequence[Override], cfg: DictConfig) -> None:
        for override in overrides:
            parent, _, key = override.key_or_group.rpartition(".")
            node: Any = OmegaConf.select(cfg, parent) if parent else cfg
            is_null = (
                override.is_delete()
                and isinstance(node, DictConfig)
                and key in node
                and node._get_node(key) is not None
            )
            if is_null and override.value() is None and node.get(key) is None and not OmegaConf.is_missing(node, key):
                if not is_dataclass(node._metadata.object_type):  # a key of the schema stays, as null
                    with open_dict(node):
                        del node[key]
            else:
                apply([override], cfg)

    return applied


def _has_null(node: Any, key: str) -> bool:
    if not isinstance(node, DictConfig) or not isinstance(found := node._get_node(key), Node):
        return False
    return bool(found._is_none())


def _skip_unused_choices() -> None:
    """Have Hydra collect the choices so far only for a defaults list that interpolates them: `db: ${server}`.

    It does so for every list, and each time makes a configuration of all choices.
    """
    original = defaults_list._create_interpolation_map
    if not hasattr(original, "__wrapped__"):
        defaults_list._create_interpolation_map = _where_interpolated(original)


def _where_interpolated(collect: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(collect)
    def collected(overrides: Any, entries: Sequence[Any], *arguments: Any) -> Any:
        is_used = any(entry.is_interpolation() for entry in entries)
        return collect(overrides, entries, *arguments) if is_used else None

    return collected
