"""The facts of a data set for planning, where it knows them without heavy imports."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, cast

from hpcexp.data.content import How, with_content
from hpcexp.data.source import Source
from hpcexp.data_spec import DataSpec, DataSpecError
from hpcexp.errors import ConfigError, DataError
from hpcexp.schema.keys import HYDRA_KEYS, TARGET
from hpcexp.schema.settings import without
from hpcexp.targets.instantiate import instantiate
from hpcexp.targets.light import is_heavy, light_object
from hpcexp.targets.nodes import referenced, target_nodes
from hpcexp.targets.source_code import is_packaged


def data_facts(target: str, node: Mapping[str, Any], how: str = "auto") -> tuple[DataSpec | None, list[str]]:
    """What the data set `target` tells of itself, and what is wrong with its arguments; nothing where it is heavy.

    `node`: its arguments, and words of Hydra's such as `_args_`.

    `how`: what is read for its fingerprint, as `data.fingerprint` says. Its module is imported once in a process; what
    it tells of its data is as new as the call.
    """
    try:
        source = source_of(target, node)
        if source is None:
            return None, []
        source.fingerprint_by(cast(How, how))
        if problems := source.problems():
            return None, problems
        facts: object = source.facts()
        if not isinstance(facts, DataSpec):
            return None, [f"data: {target}.facts() gives {type(facts).__name__}, not hpcexp.data_spec.DataSpec."]
        # Ours have read their files for their fingerprints.
        return facts if is_packaged(target) else with_content(facts, source, cast(How, how)), []
    except DataSpecError as e:
        return None, [f"data: {target}.facts(): {e}"]
    except (DataError, ConfigError) as e:
        return None, e.problems if isinstance(e, ConfigError) else [str(e)]
    except OSError as e:
        named = f"{e.filename}: " if e.filename else ""
        return None, [f"data: {named}{e.strerror or e}.\nFix: let it be read, or choose other files."]
    except Exception as e:  # noqa: BLE001 - it is the user's code that is asked, or ours with the user's arguments
        where = traceback.extract_tb(e.__traceback__)[-1]
        raised = f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})"
        return None, [f"data: {target} cannot be made of these arguments, or cannot tell its facts.\n{raised}"]


def source_of(target: str, node: Mapping[str, Any]) -> Source | None:
    """The data set `target`, made without heavy imports; None where it is none that this can be done with."""
    inner = [name for _, found in target_nodes(without(node, {TARGET})) for name in referenced(found)]
    if not inner and not (HYDRA_KEYS - {TARGET}) & node.keys():
        return light_object(target, without(node, {TARGET}), Source)  # type: ignore[type-abstract]
    if any(map(is_heavy, [target, *inner])):
        return None
    made = instantiate({**node, TARGET: target}, path="data")
    return made if isinstance(made, Source) else None
