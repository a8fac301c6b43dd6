"""How a sweep is driven, as its command asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """How a sweep is driven."""

    fresh: bool = False
    """Whether finished jobs are run again."""
    retries_failed: bool = False
    """Whether jobs that failed before are run again."""
    is_fail_fast: bool = False
    max_jobs: int | None = None
    """Jobs at once."""
    retries: int = 0
    """`launch.retries`."""
