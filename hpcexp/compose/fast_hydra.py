"""Hydra's loader without what it does for each composition and never uses, which is a tenth of a plan's time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

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
    return made


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
