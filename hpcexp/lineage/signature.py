"""A run's identity: what is asked, of which code, on which data. Where and how it runs is left out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

WHERE_AND_HOW = frozenset({"hardware", "tracking", "launch", "run", "checkpoint", "notes"})
"""Sections that change no result. The number of ranks and the kind of device do, by rounding, and count."""

HOW_IN_TRAINER = frozenset({"log_every_n_steps", "profiler"})


def signature(config: dict[str, Any], *, world_size: int, accelerator: str, code: str, data: str) -> str:
    """Hex SHA-256 of the experiment's identity."""
    asked = {k: v for k, v in config.items() if k not in WHERE_AND_HOW}
    asked["trainer"] = {k: v for k, v in asked["trainer"].items() if k not in HOW_IN_TRAINER}
    facts = {"config": asked, "world_size": world_size, "accelerator": accelerator, "code": code, "data": data}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
