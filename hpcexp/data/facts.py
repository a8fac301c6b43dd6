"""The facts of a data set for planning, where it knows them without heavy imports."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Mapping
from typing import Any, cast

from hpcexp.data.content import How, with_content
from hpcexp.data.source import Source
from hpcexp.errors import DataError
from hpcexp.plan import DataFacts
from hpcexp.targets.source_code import defining_file, imported_roots

HEAVY = frozenset({"torch", "pytorch_lightning", "lightning", "numpy", "pandas", "sklearn", "scipy", "PIL", "mlflow"})
"""A data set whose file imports one of these is not asked for its facts before the job runs."""
_OURS = "hpcexp.data."


def data_facts(target: str, arguments: Mapping[str, Any], how: str = "auto") -> tuple[DataFacts | None, list[str]]:
    """What the data set `target` tells of itself, and what is wrong with its arguments; nothing where it is heavy.

    `how`: what is read for its fingerprint, as `data.fingerprint` says. Its module is imported once in a process; what
    it tells of its data is as new as the call.
    """
    try:
        source = source_of(target, arguments)
        if source is None:
            return None, []
        source.fingerprint_by(cast(How, how))
        if problems := source.problems():
            return None, problems
        facts: object = source.facts()
        if not isinstance(facts, DataFacts):
            return None, [f"data: {target}.facts() gives {type(facts).__name__}, not hpcexp.plan.DataFacts."]
        # Ours have read their files for their fingerprints.
        return facts if type(source).__module__.startswith(_OURS) else with_content(facts, source, cast(How, how)), []
    except DataError as e:
        return None, [str(e)]
    except OSError as e:
        named = f"{e.filename}: " if e.filename else ""
        return None, [f"data: {named}{e.strerror or e}.\nFix: let it be read, or choose other files."]
    except Exception as e:  # noqa: BLE001 - it is the user's code that is asked, or ours with the user's arguments
        where = traceback.extract_tb(e.__traceback__)[-1]
        raised = f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})"
        return None, [f"data: {target} cannot be made of these arguments, or cannot tell its facts.\n{raised}"]


def source_of(target: str, arguments: Mapping[str, Any]) -> Source | None:
    """The data set `target`, made without heavy imports; None where it is none that this can be done with."""
    file = defining_file(target)
    if file is None or imported_roots(file) & HEAVY:
        return None
    cls = _imported(target)
    return cls(**arguments) if isinstance(cls, type) and issubclass(cls, Source) else None


def _imported(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)
