"""Makes `lightning.pytorch` and `lightning.fabric` the modules `pytorch_lightning` and `lightning_fabric`.

Lightning is published twice, under two names. A class from one is no subclass of its namesake in the other, so that a
module of `lightning` would be a plain `nn.Module` to a Trainer of `pytorch_lightning`. With one module under both names
code written for either runs, also mixed, whether or not `lightning` is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from hpcexp.errors import ConfigError
from hpcexp.targets.lightning_names import EXPORTS, PACKAGES, ROOT, canonical


def install() -> None:
    """Have every later import of `lightning` find pytorch_lightning; ConfigError where it is too late for that."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if imported := next((name for name in (*PACKAGES, ROOT) if name in sys.modules), None):
        raise ConfigError(
            f"{imported} was imported before hpcexp started this job, from {sys.modules[imported].__file__}.\n"
            "hpcexp trains with pytorch_lightning, and gives it the name `lightning` as well; classes of a second copy "
            "would not be recognised.\n"
            "Fix: leave out what imports it at Python's start (sitecustomize, .pth files)."
        )
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds `lightning`, `lightning.pytorch` and `lightning.fabric`, and everything below the last two."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == ROOT:
            return _root_spec()
        if not fullname.startswith(f"{ROOT}.") or (real := canonical(fullname)) == fullname:
            return None
        spec = importlib.util.find_spec(real)
        return spec and ModuleSpec(fullname, _Alias(real), is_package=spec.submodule_search_locations is not None)


def _root_spec() -> ModuleSpec:
    """The package `lightning`. Where it is installed, its remaining modules, such as `lightning.data`, are its own."""
    installed = PathFinder.find_spec(ROOT)
    spec = ModuleSpec(ROOT, _Root(), is_package=True)
    spec.submodule_search_locations = list(installed.submodule_search_locations or ()) if installed else []
    return spec


class _Alias(Loader):
    """Loads a module by giving an existing one a second name."""

    def __init__(self, real: str) -> None:
        self._real, self._spec = real, None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real)
        self._spec = module.__spec__  # type: ignore[assignment]
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has set that of the second name


class _Root(Loader):
    """Loads `lightning` without its own `__init__`."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name, "pytorch_lightning and lightning_fabric, under the name of `lightning`.")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__all__"] = list(EXPORTS)


class _Package(ModuleType):
    """`lightning`, whose exports and two subpackages are imported when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        if f"{ROOT}.{name}" in PACKAGES:
            return importlib.import_module(f"{ROOT}.{name}")
        if name not in EXPORTS:
            raise AttributeError(f"module '{ROOT}' has no attribute '{name}'")
        value = getattr(importlib.import_module(EXPORTS[name]), name)
        setattr(self, name, value)
        return value
