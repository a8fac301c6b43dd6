"""What planning asks of the task: whether it exists and fits, which metrics there will be, what the model gets."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from hpcexp.checks.values import missing_keys
from hpcexp.data_spec import DataSpec
from hpcexp.errors import ConfigError, HpcexpError, did_you_mean, listed
from hpcexp.plan import Plan
from hpcexp.schema.keys import MISSING, Trainer
from hpcexp.schema.settings import Settings, TaskSettings, without
from hpcexp.targets.light import light_object
from hpcexp.targets.source_code import Parameters, parameters
from hpcexp.targets.static_check import node_problems
from hpcexp.train.tasks.task import Mode, Task

_LOSSES: dict[str, Mode | None] = {"train/loss": "min", "val/loss": "min", "test/loss": "min"}


class AskedTask(NamedTuple):
    """What a configuration asks to be learned."""

    task: Task | None
    """None where its code imports torch, or a LightningModule has its own."""
    metrics: Mapping[str, Mode | None] | None
    """Every metric that the run will record → its better direction; None where only the job knows them."""
    mode: Mode | None
    """Better direction of `trainer.monitor`."""
    problems: list[str]


def asked_task(section: TaskSettings, trainer: Trainer, data: DataSpec | None, *, is_used: bool | None) -> AskedTask:
    """The task of a section. `is_used`: whether the model leaves its training to it; None: the job knows."""
    task, problems = light_task(section)
    if is_used is False:
        problems = []
    elif task is not None:
        problems += task.problems(data)
    metrics = reported(task) if task is not None and is_used else None
    # A module of the user's that logs a metric under one of the task's names means the same by it.
    known = reported(task) if task is not None else _LOSSES
    given = cast(Mode | None, trainer.mode)
    # Only a data module of the user's, whose facts nobody knows here, has several validation loaders.
    monitor = trainer.monitor if data is not None else metric_of(trainer.monitor)
    mode = given if given is not None else known.get(str(monitor))
    if isinstance(monitor, str) and monitor != MISSING:
        problems += _monitor_problems(monitor, given, metrics) if metrics else []
        problems += [] if problems or mode is not None else [_no_direction(monitor)]
    return AskedTask(None if is_used is False else task, metrics, mode, problems)


def without_metrics(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without `task.metrics`, whose entries have keys of the task's own beside a `_target_`."""
    return {**config, "task": without(config.get("task") or {}, {"metrics"})}


def metric_of(monitor: str) -> str:
    """`val/acc` for that metric of one of several validation loaders, `val/LOADER/acc`."""
    parts = str(monitor).split("/")
    return f"val/{parts[2]}" if len(parts) == 3 and parts[0] == "val" else monitor


def light_task(section: TaskSettings) -> tuple[Task | None, list[str]]:
    """The task that a section makes, and why it cannot; neither where its code imports torch or its target is wrong."""
    if not section.has_target:
        return None, []
    target, given = section.target, section.arguments
    if [*missing_keys(given), *node_problems("task", section.given)]:
        return None, []
    try:
        return light_object(target, given, Task), []  # type: ignore[type-abstract]
    except HpcexpError as e:
        return None, [str(e)]
    except Exception as e:  # noqa: BLE001 - it may be the user's code
        where = traceback.extract_tb(e.__traceback__)[-1]
        return None, [
            f"task._target_={target} cannot be made of these arguments.\n"
            f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})"
        ]


def reported(task: Task) -> dict[str, Mode | None]:
    """Every metric that a run of the task records, with its direction."""
    found: dict[str, Mode | None] = {"train/loss": "min"}
    return found | {f"{split}/{name}": mode for split in ("val", "test") for name, mode in task.metrics().items()}


def _monitor_problems(monitor: str, mode: Mode | None, metrics: Mapping[str, Mode | None]) -> list[str]:
    """A monitor that no validation gives, and a `trainer.mode` that is against what is better."""
    known = [name for name in metrics if not name.startswith("test/")]
    if monitor not in known:
        fix = f"{did_you_mean(monitor, known)}It gives {listed(known)}; task.metrics adds more."
        return [f"trainer.monitor={monitor}: a validation does not give it.\nFix: {fix}"]
    better = metrics[monitor]
    if mode is None or better is None or mode == better:
        return []
    word = "higher" if better == "max" else "lower"
    return [
        f"trainer.mode={mode}: of {monitor} a {word} value is better.\n"
        f"Fix: leave trainer.mode out, or trainer.mode={better}."
    ]


def _no_direction(monitor: str) -> str:
    return (
        f"trainer.mode: nobody says whether a higher or a lower {monitor} is better.\n"
        "Fix: trainer.mode=max, or trainer.mode=min"
    )


def with_filled(config: dict[str, Any], task: Task | None, facts: DataSpec | None) -> dict[str, Any]:
    """The configuration with what the task gives the model, where that takes it."""
    if task is None or facts is None:
        return config
    model = Settings(config).model
    taken = parameters(model.target)
    known = task.model_arguments(facts)
    names = taken.types if isinstance(taken, Parameters) else ()
    filled = {k: list(v) if isinstance(v, tuple) else v for k, v in known.items() if k in names}
    return {**config, "model": {**filled, **model.given}}


def checkable(plan: Plan) -> dict[str, Any]:
    """A plan's configuration with what its task gives the model; without the model where the job alone knows that."""
    task, _ = light_task(plan.settings.task)
    config = without_metrics(plan.config)
    if plan.settings.task.has_target and (task is None or plan.data is None):
        return without(config, {"model"})
    return with_filled(config, task, plan.data)


def make_task(section: TaskSettings) -> Task:
    """The task in a job; ConfigError where the target makes none."""
    from hpcexp.targets.instantiate import resolve

    made = resolve(section.target, "task")(**section.arguments)
    if not isinstance(made, Task):
        raise ConfigError(
            f"task._target_={section.target} gives a {type(made).__name__}, which is no hpcexp.train.tasks.task.Task.\n"
            "Fix: let its class inherit from Task."
        )
    return made
