"""Whether the data is fit for the task and for the ranks."""

from __future__ import annotations

from hpcexp.errors import did_you_mean, listed
from hpcexp.plan import DataFacts
from hpcexp.schema.keys import CLASSIFICATION_METRICS, REGRESSION_METRICS, Task
from hpcexp.schema.settings import Settings

CLASS_LOSSES = frozenset({"torch.nn.CrossEntropyLoss", "torch.nn.NLLLoss", "torch.nn.MultiMarginLoss"})
"""Losses that need class numbers for targets."""


def metric_problems(settings: Settings) -> list[str]:
    """Names in `task.metrics` that are no metrics."""
    known = [*CLASSIFICATION_METRICS, *REGRESSION_METRICS]
    unknown = [name for name in settings.task.metrics if name not in known]
    return [f"task.metrics={n}: no such metric.\nFix: {did_you_mean(n, known)}{listed(known)}." for n in unknown]


def data_problems(settings: Settings, facts: DataFacts, world_size: int) -> list[str]:
    """What the task or the number of ranks asks of the data and it does not have."""
    return [*_task_problems(settings.task, facts), *_split_problems(settings, facts, world_size)]


def _task_problems(task: Task, facts: DataFacts) -> list[str]:
    unfit = REGRESSION_METRICS if facts.num_classes else CLASSIFICATION_METRICS
    wrong = [f"task.metrics={name}" for name in task.metrics if name in unfit]
    loss = task.loss.get("_target_")
    if not facts.num_classes and loss in CLASS_LOSSES:
        wrong.append(f"task.loss._target_={loss}")
    if not wrong:
        return []
    what, fix = ("classes", "classification") if facts.num_classes else ("numbers", "regression")
    return [f"{', '.join(wrong)}: the data's targets are {what}.\nFix: task={fix}, or other data."]


def _split_problems(settings: Settings, facts: DataFacts, world_size: int) -> list[str]:
    problems = []
    if not facts.num_val and str(settings.trainer.monitor).startswith("val/"):
        problems.append(
            f"trainer.monitor={settings.trainer.monitor}, but the data has no validation samples.\n"
            "Fix: data with a validation split, or trainer.monitor=train/loss trainer.mode=min"
        )
    for split, size in (("validation", facts.num_val), ("test", facts.num_test)):
        if 0 < size < world_size:
            problems.append(
                f"hardware.devices={world_size}, but there are only {size} {split} samples: a rank would have none.\n"
                f"Fix: hardware.devices={size}"
            )
    return problems
