"""Names of runs that a person can tell apart: what was overridden, the seed, and the start of the signature."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_LENGTH = 96
SIGNATURE_LENGTH = 8
_UNNAMED = (
    "experiment",
    "seed",
    "run",
    "tracking",
    "launch",
    "hardware.threads_per_rank",
    "hardware.share",
    "hardware.force",
    "notes",
    "name",
)


def run_name(overrides: Iterable[str], seed: int, signature: str, label: str) -> str:
    """`lr=0.01,model=cnn-s1-1f3a5c7e`; `base` where nothing was overridden."""
    given = list(overrides)
    targets = {o.partition("._target_=")[0].lstrip("+") for o in given if "._target_=" in o}
    named = [_short(o) for o in given if _is_named(o) and not (o.startswith("~") and o[1:] in targets)]
    words = _legal(",".join(named) or "base")
    head = f"{_legal(label)}-{words}" if label else words
    return f"{head[:MAX_LENGTH]}-s{seed}-{signature[:SIGNATURE_LENGTH]}"


def _is_named(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return not any(key == u or key.startswith(f"{u}.") for u in _UNNAMED)


def _short(override: str) -> str:
    key, equals, value = override.lstrip("+").partition("=")
    if key.endswith("._target_"):  # model._target_=package.module.Class is model=Class
        key, value = key.removesuffix("._target_"), value.rpartition(".")[2]
    return f"{key.rpartition('.')[2]}{equals}{short(value)}"


def short(value: str) -> str:
    """A value as it was typed, its numbers with no more digits than a person compares."""
    return _LONG.sub(lambda number: f"{float(number[0]):.4g}", value)


_LONG = re.compile(r"\d*\.\d{6,}(?:e-?\d+)?", re.IGNORECASE)
"""A number as a search draws it."""


def _legal(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.,=+~-]+", "_", re.sub(r"[][{}'\"]", "", text)).strip("_.")
