"""A configuration with the types of the schema: `settings.launch.grace_s`, which a type checker understands.

A view: it checks and converts nothing. Sections are made when they are first read, and see no later change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field
from functools import cached_property
from typing import Any, TypeVar, cast

from hpcexp.schema.keys import (
    HYDRA_KEYS,
    OWN_KEYS,
    TARGET,
    Checkpoint,
    Data,
    Hardware,
    Launch,
    Model,
    Run,
    Scheduler,
    Strategy,
    Task,
    Tracking,
    Trainer,
)

_T = TypeVar("_T")
_OpenT = TypeVar("_OpenT", bound="TargetSection")


class TargetSection:
    """A section with a `_target_`. In subclasses, the keys that hpcexp reads there are attributes."""

    given: Mapping[str, Any]
    """The section as it is in the configuration."""
    path: str

    @property
    def has_target(self) -> bool:
        """Whether the section names a target."""
        return self.given.get(TARGET) is not None

    @property
    def target(self) -> str:
        """Dotted name of a class or function; KeyError if the section names none."""
        return str(self.given[TARGET])

    @property
    def node(self) -> dict[str, Any]:
        """What the target is made from: the section without hpcexp's own keys."""
        return without(self.given, OWN_KEYS.get(self.path, ()))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the target is called with: `node` without Hydra's keys."""
        return arguments(self.path, self.given)


class DataSettings(TargetSection, Data):
    """`data`."""


class TaskSettings(TargetSection, Task):
    """`task`."""


class ModelSettings(TargetSection, Model):
    """`model`."""


class OptimizerSettings(TargetSection):
    """`optimizer`. All its keys but `no_decay` are arguments of the target."""

    @property
    def no_decay(self) -> list[str]:
        """Patterns of parameters without weight decay."""
        return list(self.given.get("no_decay") or ())


class SchedulerSettings(TargetSection, Scheduler):
    """`scheduler`."""


class StrategySettings(TargetSection, Strategy):
    """`strategy`."""


class LaunchSettings(TargetSection, Launch):
    """`launch`."""


class Settings:
    """The sections of a configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    @property
    def name(self) -> str:
        return cast(str, self._config["name"])

    @property
    def notes(self) -> str:
        return cast(str, self._config["notes"])

    @property
    def seed(self) -> int:
        return cast(int, self._config["seed"])

    @property
    def callbacks(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self._config["callbacks"])

    @cached_property
    def hardware(self) -> Hardware:
        return self._closed(Hardware, "hardware")

    @cached_property
    def data(self) -> DataSettings:
        return self._open(DataSettings, "data")

    @cached_property
    def task(self) -> TaskSettings:
        return self._open(TaskSettings, "task")

    @cached_property
    def model(self) -> ModelSettings:
        return self._open(ModelSettings, "model")

    @cached_property
    def optimizer(self) -> OptimizerSettings:
        return self._open(OptimizerSettings, "optimizer")

    @cached_property
    def scheduler(self) -> SchedulerSettings:
        return self._open(SchedulerSettings, "scheduler")

    @cached_property
    def strategy(self) -> StrategySettings:
        return self._open(StrategySettings, "strategy")

    @cached_property
    def trainer(self) -> Trainer:
        return self._closed(Trainer, "trainer")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return self._closed(Checkpoint, "checkpoint")

    @cached_property
    def tracking(self) -> Tracking:
        return self._closed(Tracking, "tracking")

    @cached_property
    def launch(self) -> LaunchSettings:
        return self._open(LaunchSettings, "launch")

    @cached_property
    def run(self) -> Run:
        return self._closed(Run, "run")

    def _closed(self, kind: type[_T], path: str) -> _T:
        """The section's values as attributes; where it has none, the class has the default."""
        section, given = object.__new__(kind), self._section(path)
        fields: Mapping[str, Field[Any]] = getattr(kind, "__dataclass_fields__", {})
        for key, own in fields.items():
            if key in given:
                vars(section)[key] = given[key]
            elif own.default_factory is not MISSING:  # of which a class has no attribute
                vars(section)[key] = own.default_factory()
        return section

    def _open(self, kind: type[_OpenT], path: str) -> _OpenT:
        section = self._closed(kind, path)
        section.given, section.path = self._section(path), path
        return section

    def _section(self, path: str) -> Mapping[str, Any]:
        """Empty where the configuration has none, or no mapping, which planning reports."""
        section = self._config.get(path)
        return section if isinstance(section, Mapping) else {}


def arguments(path: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """What the node at `path` gives its target: its entries without the keys that Hydra or hpcexp read themselves."""
    return without(node, HYDRA_KEYS | OWN_KEYS.get(path, frozenset()))


def without(node: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """`node` without some of its keys."""
    dropped = frozenset(keys)
    return {k: v for k, v in node.items() if k not in dropped}
