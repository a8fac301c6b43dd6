"""Objects that planning makes of a `_target_`: those whose code can be imported without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hpcexp.targets.instantiate import resolve
from hpcexp.targets.source_code import defining_file, imported_roots

T = TypeVar("T")

HEAVY = frozenset({"torch", "pytorch_lightning", "lightning", "numpy", "pandas", "sklearn", "scipy", "PIL", "mlflow"})
"""What imports one of these is not imported before the job runs."""


def light_object(target: str, arguments: Mapping[str, Any], kind: type[T]) -> T | None:
    """The object that `target` makes; None where its code is heavy or it makes no `kind`."""
    if is_heavy(target):
        return None
    cls = resolve(target, "")
    return cls(**arguments) if isinstance(cls, type) and issubclass(cls, kind) else None


def is_heavy(target: str) -> bool:
    """Whether the file that defines `target` imports what planning does not, or is unknown."""
    file = defining_file(target)
    return file is None or bool(imported_roots(file) & HEAVY)
