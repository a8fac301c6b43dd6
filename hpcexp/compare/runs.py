"""A run, read from its directory or from an MLflow store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hpcexp.compare.metrics import curve_value, guessed_mode
from hpcexp.runs.series import Series

SECTIONS = ("config", "code", "data", "environment")
"""What runs can differ in."""


@dataclass(frozen=True)
class ComparedRun:
    """What is known of one run. Texts are as one types them in an override."""

    experiment: str
    name: str
    id: str
    """Eight characters that `hpcexp show` and MLflow's search know it by."""
    location: str
    """Its directory, or its MLflow run id."""
    state: str
    """`planned`, `running`, `finished`, `pruned`, `failed` or `killed`."""
    started: float
    """Unix seconds; 0 where it has not."""
    facts: Mapping[str, Mapping[str, str]]
    """Section of SECTIONS → dotted key → value."""
    choices: Mapping[str, str]
    """Config group → option."""
    numbers: Mapping[str, float]
    """Its results: test metrics, the best of what was monitored, and what else has no curve."""
    curve_of: Callable[[str], Series]
    """Reads a metric's values over the steps; empty where there are none."""
    curve_names: Callable[[], Iterable[str]]
    """Finds the metrics that have some."""
    sweeps: tuple[str, ...] = ()
    """Names of the sweeps that it belongs to, where that was asked for."""
    axes: Mapping[str, str] = field(default_factory=dict)
    """Axis → value, where it was chosen as a job of a sweep."""

    @property
    def config(self) -> Mapping[str, str]:
        return self.facts["config"]

    @property
    def title(self) -> str:
        """What names it alone."""
        return f"{self.experiment}/{self.name}"

    @property
    def monitor(self) -> str | None:
        """The metric that its best weights were chosen by."""
        return self.config.get("trainer.monitor")

    def mode_of(self, metric: str) -> str:
        """`max` or `min`: as the run says of what it monitors, on whatever split; otherwise as the name does."""
        is_monitored = metric.rpartition("/")[2] == (self.monitor or "").rpartition("/")[2]
        return (is_monitored and self.config.get("trainer.mode")) or guessed_mode(metric)

    def value(self, metric: str, mode: str) -> float | None:
        """A number of the run, else the value of its curve."""
        return self.numbers[metric] if metric in self.numbers else curve_value(metric, self.curve_of(metric), mode)


@dataclass(frozen=True)
class Found:
    """Runs that could be read, and of each other one why it could not, with a way out."""

    runs: tuple[ComparedRun, ...]
    problems: tuple[str, ...] = ()
