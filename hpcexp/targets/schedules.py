"""Whether a schedule needs the length of the training, and what to say where that is unknown."""

from __future__ import annotations

from collections.abc import Callable

from hpcexp.schema.keys import TARGET
from hpcexp.schema.settings import Settings
from hpcexp.targets.source_code import Found, Parameters


def schedule_problems(settings: Settings, parameters_of: Callable[[str], Found], *, is_length_known: bool) -> list[str]:
    """A schedule that needs the number of steps of a training that has none beforehand."""
    node = settings.scheduler.given
    target = node.get(TARGET)
    if is_length_known or not isinstance(target, str) or "total_steps" in node:
        return []
    found = parameters_of(target)
    if not isinstance(found, Parameters) or "total_steps" not in found.types:
        return []
    needs = "total_steps" in found.required or node.get("warmup")
    return [length_unknown(target, settings.trainer.max_duration)] if needs else []


def length_unknown(target: str, duration: str | None) -> str:
    """That a schedule needs the number of steps."""
    why = f"trainer.max_duration={duration} does not say" if duration else "the data, which has no length, does not say"
    return (
        f"scheduler._target_={target}: it needs the number of steps, and {why} how many there will be.\n"
        "Fix: trainer.max_steps=10000 (or trainer.max_duration=10000ba); scheduler.total_steps=10000; or "
        "scheduler=constant scheduler.warmup=0."
    )
