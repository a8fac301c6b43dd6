"""A run's identity: what is asked, of which code, on which data. Where and how it runs is left out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from hpcexp.files.documents import sortable
from hpcexp.plan import Batch, Steps, Topology

WHERE_AND_HOW = frozenset({"hardware", "tracking", "launch", "run", "checkpoint", "notes"})
"""Sections that change no result. The number of ranks and the kind of device do, by rounding, and count."""

HOW = {
    "data": frozenset({"loader", "num_workers", "fingerprint"}),
    "model": frozenset({"init_from"}),
    "strategy": frozenset({"name", "gradient_as_bucket_view", "find_unused_parameters", "static_graph"}),
    "trainer": frozenset({"log_every_n_steps", "profiler"}),
}
"""Keys of other sections that change none. What a strategy's name means is in the topology; initial weights count by
their digest."""


def signature(
    config: dict[str, Any],
    topology: Topology,
    batch: Batch | None,
    steps: Steps | None,
    *,
    code: str,
    data: str,
    weights: str = "",
) -> str:
    """Hex SHA-256 of the experiment's identity. `code`, `data` and initial `weights` are digests."""
    facts = {
        "config": identity_config(config, topology),
        "devices": [topology.accelerator, topology.world_size, topology.strategy],
        "length": [batch and asdict(batch), steps and asdict(steps)],
        "code": code,
        "data": data,
    }
    if weights:
        facts["weights"] = weights
    return hashlib.sha256(json.dumps(sortable(facts), sort_keys=True, default=str).encode()).hexdigest()


def identity_config(config: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """The part of a configuration that decides on the result."""
    # Options of what holds ranks together have nothing to do where there is one.
    left_out = WHERE_AND_HOW | ({"strategy"} if topology.strategy == "single" else frozenset())
    return {
        section: {k: v for k, v in value.items() if k not in HOW[section]} if section in HOW else value
        for section, value in config.items()
        if section not in left_out
    }
