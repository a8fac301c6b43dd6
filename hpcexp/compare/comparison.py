"""Runs compared: grouped over their seeds, ranked, with all that they differ in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hpcexp.compare.differences import Difference, differences, repeats
from hpcexp.compare.runs import ComparedRun
from hpcexp.compare.statistics import best_first, grouped, mean, paired_p
from hpcexp.runs.records.status import RunState
from hpcexp.schema.keys import REPEATS

_MOST_METRICS = 6
"""Where nothing says which of a run's numbers count."""


class Metric(NamedTuple):
    """A metric to compare runs by."""

    name: str
    mode: str
    """`max` or `min`."""


Row = tuple[int, ...]
"""Indices into `Comparison.runs` of runs in one row: those that differ in their seed and fold only, or one."""
Repeat = tuple[str, ...]
"""Which repetition of an experiment a run is: its seed, its fold, and what else rows are means over."""


@dataclass(frozen=True)
class Comparison:
    """Some runs, compared."""

    runs: tuple[ComparedRun, ...]
    rows: tuple[Row, ...]
    """The best first, by the first metric."""
    columns: tuple[Difference, ...]
    same: Mapping[str, int]
    """Section → number of its keys that all runs have in common."""
    metrics: tuple[Metric, ...]
    values: Mapping[str, tuple[float | None, ...]]
    """Metric → its value of each run, in order; None where it has none."""
    over: tuple[str, ...]
    """Keys that the runs of a row may differ in."""
    is_grouped: bool

    def of(self, row: Row) -> list[ComparedRun]:
        """The runs of a row."""
        return [self.runs[i] for i in row]

    def numbers(self, row: Row, metric: str) -> dict[Repeat, float]:
        """Seed and fold → value, of the runs that count."""
        found = {self._repeat(i): self.values[metric][i] for i in self.counted(row)}
        return {repeat: value for repeat, value in found.items() if value is not None}

    def counted(self, row: Row) -> list[int]:
        """Places of the runs that count: of groups only finished ones, of several of one seed and fold the latest."""
        chosen = [i for i in row if not self.is_grouped or self.runs[i].state == RunState.FINISHED]
        chosen.sort(key=lambda i: self.runs[i].started)
        return list({self._repeat(i): i for i in chosen}.values())

    def _repeat(self, index: int) -> Repeat:
        """Values of `over`; what says no seed is one of a kind."""
        config = self.runs[index].config
        return tuple(config.get(key, self.runs[index].location if key == "seed" else "") for key in self.over)

    def p(self, row: Row) -> float | None:
        """Of the paired test of the first metric against the best row; None for that one, or with too few pairs."""
        if row is self.rows[0] or not self.metrics:
            return None
        metric = self.metrics[0].name
        return paired_p(self.numbers(row, metric), self.numbers(self.rows[0], metric))


def compare(
    runs: Sequence[ComparedRun], metrics: Sequence[Metric], *, is_grouped: bool = True, over: Iterable[str] = ()
) -> Comparison:
    """Compare runs; jobs of a sweep are grouped by their values on its axes.

    Runs of a group may differ in their seed, their fold and the keys in `over`.
    """
    over = tuple(dict.fromkeys([*REPEATS, *over]))
    found, axes = differences(runs), _axes(runs)
    repeated = repeats([*axes, *found.found], over) if is_grouped else []
    given = [axis for axis in axes if axis not in repeated]
    differing = [d for d in found.found if d not in repeated and not (axes and _follows(d, given))]
    deciding = given or [d for d in differing if d.is_result]
    keys = list(zip(*(d.values for d in deciding), strict=True)) or [()] * len(runs)
    rows = grouped(range(len(runs)), keys.__getitem__).values() if is_grouped else [(i,) for i in range(len(runs))]
    values = {m.name: tuple([run.value(m.name, m.mode) for run in runs]) for m in metrics}
    whole = Comparison(
        runs=tuple(runs),
        rows=tuple(rows),
        columns=(*given, *differing),
        same=found.same,
        metrics=tuple(metrics),
        values=values,
        over=over,
        is_grouped=is_grouped,
    )
    return _ranked(whole)


def default_metrics(runs: Sequence[ComparedRun]) -> list[Metric]:
    """What was monitored, by most runs first, and test metrics; where there is neither, what else there is."""
    monitored = [name for name, _ in Counter(run.monitor for run in runs).most_common() if name]
    recorded = dict.fromkeys(name for run in runs for name in run.numbers)
    tested = sorted(name for name in recorded if name.startswith("test"))
    names = dict.fromkeys([*monitored, *tested] or sorted(recorded)[:_MOST_METRICS])
    return [Metric(name, mode_of(name, runs)) for name in names]


def mode_of(metric: str, runs: Sequence[ComparedRun]) -> str:
    """Which way of a metric is better: as the first run says that monitors it, otherwise as its name does."""
    return next((run for run in runs if run.monitor == metric), runs[0]).mode_of(metric)


def _axes(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Axes of the sweep along which the runs differ."""
    found = [
        Difference("config", axis, tuple([run.axes.get(axis) for run in runs]))
        for axis in dict.fromkeys(axis for run in runs for axis in run.axes)
    ]
    return [axis for axis in found if len(set(axis.values)) > 1]


def _ranked(whole: Comparison) -> Comparison:
    if not whole.metrics:
        return whole
    name, mode = whole.metrics[0]
    rows = best_first(whole.rows, lambda row: mean(list(whole.numbers(row, name).values())), mode)
    return replace(whole, rows=tuple(rows))


def _follows(difference: Difference, axes: Sequence[Difference]) -> bool:
    """Whether it is a key of the configuration that has one value at each point of a sweep."""
    points: list[tuple[str | None, ...]] = list(zip(*(axis.values for axis in axes), strict=True))
    pairs = set(zip(points, difference.values, strict=True))
    return difference.section == "config" and len(pairs) == len(set(points))
