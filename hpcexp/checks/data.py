"""Whether the data is fit for the ranks."""

from __future__ import annotations

from hpcexp.data_spec import DataSpec
from hpcexp.schema.settings import Settings


def split_problems(settings: Settings, facts: DataSpec, world_size: int) -> list[str]:
    """What the monitor or the number of ranks asks of the data's splits and they do not have."""
    problems = []
    if facts.num_train is None and not settings.trainer.max_steps:
        problems.append(
            "trainer.max_steps: nobody knows how long an epoch of the training data is, so trainer.max_epochs does not "
            "say how long training takes.\nFix: trainer.max_steps=1000"
        )
    if not facts.num_val and str(settings.trainer.monitor).startswith("val/"):
        problems.append(
            f"trainer.monitor={settings.trainer.monitor}, but the data has no validation samples.\n"
            "Fix: data with a validation split, or trainer.monitor=train/loss"
        )
    for split, size in (("validation", facts.num_val), ("test", facts.num_test)):
        if 0 < size < world_size:
            problems.append(
                f"hardware.devices={world_size}, but there are only {size} {split} samples: a rank would have none.\n"
                f"Fix: hardware.devices={size}"
            )
    return problems
