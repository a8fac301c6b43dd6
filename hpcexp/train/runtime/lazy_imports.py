"""Makes `import pytorch_lightning` cheap: a third of it is scipy and matplotlib, which a training job never uses.

Lightning needs two classes of torchmetrics, `Metric` and `MetricCollection`, and its version. The package's `__init__`
imports every metric there is, and with them scipy; each metric imports matplotlib for its `plot()`. `lighten` gives the
package a module that resolves those from their own files and runs the real `__init__` as soon as anybody asks for more,
and the plotting module one whose functions load the real one when they are called. All of torchmetrics keeps working.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "torchmetrics"
_PLOT = "torchmetrics.utilities.plot"
_HOMES = {
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "__version__": "torchmetrics.__about__",
}


def lighten() -> None:
    """Install both stand-ins; does nothing where torchmetrics is missing or has been imported already."""
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.loader is None or not spec.submodule_search_locations:
        return
    plot_file = Path(next(iter(spec.submodule_search_locations)), "utilities", "plot.py")
    plot_spec = importlib.util.spec_from_file_location(_PLOT, plot_file)
    package = _described(_LazyPackage(_PACKAGE, "torchmetrics, its metrics imported on demand."), spec)
    package._logger = logging.getLogger(_PACKAGE)  # type: ignore[attr-defined]  # what its own files take from it
    sys.modules[_PACKAGE] = package
    if plot_spec is not None and plot_file.is_file():
        sys.modules[_PLOT] = _described(_LazyPlot(_PLOT), plot_spec)


def _described(module: ModuleType, spec: ModuleSpec) -> ModuleType:
    """`module` with what the import system expects to find on it."""
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    module.__package__ = spec.parent
    if spec.submodule_search_locations is not None:
        module.__path__ = spec.submodule_search_locations
    return module


class _LazyPackage(ModuleType):
    """The package before its `__init__` has run."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            importlib.import_module(f"{_PACKAGE}.utilities")  # first, as it and `metric` import each other
            value = getattr(importlib.import_module(_HOMES[name]), name)
            setattr(self, name, value)
            return value
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


class _LazyPlot(ModuleType):
    """The plotting module before matplotlib is needed; metrics import its functions and name its types."""

    _AX_TYPE = _PLOT_OUT_TYPE = _CMAP_TYPE = object

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("plot_"):
            raise AttributeError(name)

        def plot(*args: Any, **kwargs: Any) -> Any:
            return getattr(_real_plot(), name)(*args, **kwargs)

        return plot


def _real_plot() -> ModuleType:
    module = sys.modules[_PLOT]
    if isinstance(module, _LazyPlot):
        spec = module.__spec__
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PLOT] = module
        spec.loader.exec_module(module)
    return module
