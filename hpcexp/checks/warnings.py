"""Settings that are legal and may surprise."""

from __future__ import annotations

from hpcexp.checks.strategies import strategy_warnings
from hpcexp.data_spec import DataSpec
from hpcexp.plan import Steps, Topology
from hpcexp.schema.settings import Settings


def warnings_of(settings: Settings, topology: Topology, steps: Steps | None, facts: DataSpec | None) -> list[str]:
    """What is legal and yet may not be what was meant. `facts`: None where planning cannot read the data."""
    data = settings.data
    found = strategy_warnings(settings.strategy, topology, steps)
    if topology.accelerator == "cpu" and topology.ranks_per_node > 1 and settings.strategy.name == "auto":
        found.append(
            f"{topology.ranks_per_node} processes share one CPU: one process with all cores is often faster "
            "(hardware.devices=1)."
        )
    if facts is not None and data.num_workers and data.loader != "map":
        found.append(f"data.num_workers={data.num_workers} only applies to data.loader=map.")
    if data.folds is not None:
        found.append(
            f"data.folds={data.folds} cuts the training split: a validation split that the data has of its own is not "
            "used."
        )
    if facts is None:
        found.append(
            f"data._target_={data.target} is read in the job only: its size and shape are checked there, and a change "
            "of its content does not make another run (--fresh runs again)."
        )
    return found
