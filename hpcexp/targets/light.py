"""Objects that planning makes of a `_target_`: those whose code can be imported without torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from hpcexp.targets.source_code import defining_file, imported_roots

T = TypeVar("T")

HEAVY = frozenset({"torch", "pytorch_lightning", "lightning", "numpy", "pandas", "sklearn", "scipy", "PIL", "mlflow"})
"""What imports one of these is not imported before the job runs."""


def light_object(target: str, arguments: Mapping[str, Any], kind: type[T]) -> T | None:
    """The object that `target` makes; None where its code is heavy or it makes no `kind`."""
    file = defining_file(target)
    if file is None or imported_roots(file) & HEAVY:
        return None
    module, _, name = target.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return cls(**arguments) if isinstance(cls, type) and issubclass(cls, kind) else None
