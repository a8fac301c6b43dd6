"""Whether a run can resume from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from hpcexp.errors import RunError

SHOWN = 5


def check_compatible(
    checkpoint: Mapping[str, Any],
    path: Path,
    *,
    module: pl.LightningModule,
    world_size: int,
    signature: str,
    adopted: bool = False,
) -> None:
    """RunError that says what is different about a checkpoint of another run, another number of ranks or model.

    Where it is `adopted`, by `run.resume_from`, it may be of another number of ranks.
    """
    own = checkpoint.get("hpcexp", {})
    problems = []
    if not own:
        problems.append("it is not a checkpoint of hpcexp's.")
    elif own["signature"] != signature and not adopted:
        problems.append(f"it is of the run {own['signature'][:8]}; this one is {signature[:8]}.")
    if own and (ranks := len(own["random"])) != world_size and not adopted:
        problems.append(f"it is of {ranks} ranks; this run has {world_size} (hardware.devices × hardware.num_nodes).")
    problems += _differences(checkpoint.get("state_dict", {}), module.state_dict(), strict=module.strict_loading)
    if problems:
        shown = [*problems[:SHOWN], *([f"… and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else [])]
        raise RunError(
            f"The run cannot resume from {path}:\n"
            + "\n".join(f"  {problem}" for problem in shown)
            + "\nFix: put the run's own checkpoint there; or hpcexp train --fresh … starts over, with this run kept."
        )


def _differences(saved: Mapping[str, Any], model: Mapping[str, Any], *, strict: bool) -> list[str]:
    """Names that only one of the two has, and shapes that differ."""
    problems = []
    for name in saved.keys() & model.keys():
        there, here = _shape(saved[name]), _shape(model[name])
        if there != here:
            problems.append(f"{name} has the shape {there} in it, and {here} in the model.")
    if strict:
        problems += [f"{name} is in it, and not in the model." for name in saved.keys() - model.keys()]
        problems += [f"{name} is in the model, and not in it." for name in model.keys() - saved.keys()]
    return sorted(problems)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
