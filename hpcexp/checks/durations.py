"""How long training lasts: `trainer.max_duration`, in epochs, batches, samples, tokens or time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from hpcexp.plan import Batch
from hpcexp.schema.keys import Trainer
from hpcexp.schema.settings import Settings

UNITS = {
    "ep": "epochs",
    "ba": "global batches",
    "sp": "samples",
    "tok": "tokens",
    "s": "seconds",
    "min": "minutes",
    "h": "hours",
    "d": "days",
}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:e\+?[0-9]+)?)\s*(?P<unit>[a-z]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Duration:
    """A number of one of `UNITS`."""

    number: float
    unit: str

    @property
    def seconds(self) -> float | None:
        """Its length by the clock; None where it is counted."""
        return self.number * _SECONDS[self.unit] if self.unit in _SECONDS else None

    @property
    def tokens(self) -> int | None:
        """Its length in tokens; None in any other unit."""
        return int(self.number) if self.unit == "tok" else None


def parse_duration(text: str) -> Duration | None:
    """`20ep`, `5_000ba`, `1e9tok`, `2.5h`; None where it is no positive duration."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None or found["unit"].lower() not in UNITS:
        return None
    number, unit = float(found["number"].replace("_", "")), found["unit"].lower()
    is_right = math.isfinite(number) and number > 0 and (unit in _SECONDS or number.is_integer())
    return Duration(number, unit) if is_right else None


def duration_of(trainer: Trainer) -> Duration | None:
    """The duration that a configuration asks for."""
    text = trainer.max_duration
    return parse_duration(text) if isinstance(text, str) else None


def duration_problems(trainer: Trainer, asked: list[str]) -> list[str]:
    """A duration that is none, or one beside other lengths that were asked for."""
    text = trainer.max_duration
    if not isinstance(text, str):
        return []
    if parse_duration(text) is None:
        units = ", ".join(f"{unit} ({name})" for unit, name in UNITS.items())
        return [
            f"trainer.max_duration={text}: it is a number above 0 and a unit, without a fraction for what is counted.\n"
            f"Units are: {units}.\nFix: trainer.max_duration=20ep, 5000ba, 1e9tok or 2h"
        ]
    return [
        f"{setting}: trainer.max_duration={text} says already how long training lasts.\nFix: leave one of them out."
        for setting in asked
    ]


def with_lengths(config: dict[str, Any], batch: Batch | None) -> dict[str, Any]:
    """The configuration with `max_epochs` and `max_steps` as its duration says: empty where the job must count."""
    duration = duration_of(Settings(config).trainer)
    if duration is None:
        return config
    epochs = steps = None
    if duration.unit == "ep":
        epochs = int(duration.number)
    elif duration.unit == "ba":
        steps = int(duration.number)
    elif duration.unit == "sp" and batch is not None:
        steps = math.ceil(duration.number / batch.global_size)
    return {**config, "trainer": {**config["trainer"], "max_epochs": epochs, "max_steps": steps}}
