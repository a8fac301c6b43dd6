"""Where a run is to be recorded: names that MLflow cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LONGEST = 500
"""Characters of an experiment's name."""
_OURS = ("hpcexp.", "mlflow.")


def tracking_problems(experiment: Any, tags: Mapping[Any, Any]) -> list[str]:
    """What is wrong with `tracking.experiment` and `tracking.tags`."""
    problems = []
    if not str(experiment).strip():
        problems.append(
            "tracking.experiment is empty, and every experiment of MLflow has a name.\nFix: tracking.experiment=NAME"
        )
    if len(str(experiment)) > _LONGEST:
        problems.append(
            f"tracking.experiment has {len(str(experiment))} characters; MLflow takes {_LONGEST}.\n"
            "Fix: tracking.experiment=NAME with a shorter one."
        )
    if own := [tag for tag in tags if str(tag).startswith(_OURS)]:
        problems.append(
            f"tracking.tags.{own[0]}: tags that begin with {' or '.join(_OURS)} are hpcexp's and MLflow's own.\n"
            "Fix: another name for the tag."
        )
    return problems
