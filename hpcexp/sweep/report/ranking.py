"""The answer of a sweep: its points ranked, what failed, and what to do next; as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpcexp.compare import statistics
from hpcexp.rundir import SweepDir
from hpcexp.runs.naming import short
from hpcexp.runs.records.status import RunState
from hpcexp.runs.records.sweep import SweepBest
from hpcexp.schema.keys import REPEATS
from hpcexp.sweep.spec.spec import Objective, Spec
from hpcexp.sweep.store.results import PointResults, Result, ranked
from hpcexp.text.formatting import csv_row, markdown_table, table

TOP = 15
"""Points that are shown on the command line."""


def answer(directory: SweepDir, spec: Spec, results: Sequence[Result], why_stopped: str, num_dropped: int) -> str:
    """The results of a sweep, for people."""
    points, axes, objectives = ranked(results, spec.objectives), columns(spec), spec.objectives
    lines = [f"{spec.name}: {counts_text(results)}"]
    if why_stopped:
        lines.append(f"stopped: {why_stopped}")
    if num_dropped:
        lines.append(f"{num_dropped} jobs of before are not asked for any more; their results stay in their runs.")
    if len(points) > 1:
        lines += ["", table(header(axes, objectives), rows(points[:TOP], axes, objectives))]
        if len(points) > TOP:
            lines.append(f"and {len(points) - TOP} more: {directory.table_md}")
        lines.append("")
    lines += [*filter(None, [best_text(points, objectives)]), *failures(results)]
    return "\n".join(lines)


def columns(spec: Spec) -> list[str]:
    """The axes that a ranking has a column for: points are ranked over seeds and folds."""
    given = [values_of(point) for point in spec.points]
    axes = dict.fromkeys(axis.lstrip("+") for axis in [*spec.axes, *(axis for point in given for axis in point)])
    return [axis for axis in axes if axis not in REPEATS]


def values_text(values: Sequence[float | None], objectives: Sequence[Objective]) -> str:
    """`val/acc 0.9912`."""
    return "  ".join(f"{o.metric} {v:.4g}" for v, o in zip(values, objectives, strict=False) if v is not None)


def best(points: Sequence[PointResults], objectives: Sequence[Objective]) -> SweepBest | None:
    """The best point; None where nothing has a value."""
    point = points[0] if points and points[0].mean() is not None else None
    if point is None:
        return None
    runs = [r for r in point.results if r.state is RunState.FINISHED and r.values and r.values[0] is not None]
    sign = 1 if objectives[0].mode == "max" else -1
    top = max(runs, key=lambda r: sign * (r.values[0] or 0.0))
    means = {o.metric: mean for i, o in enumerate(objectives) if (mean := point.mean(i)) is not None}
    return SweepBest(run=top.entry.run, params=values_of(point.overrides), metrics=means, seeds=len(runs))


def header(axes: Sequence[str], objectives: Sequence[Objective]) -> list[str]:
    """Names of the columns."""
    return ["", *axes, *(objective.metric for objective in objectives), "jobs", "time"]


def rows(points: Iterable[PointResults], axes: Sequence[str], objectives: Sequence[Objective]) -> list[list[str]]:
    """A row for each point: rank, its values on the axes, the objectives, its jobs, seconds of one."""
    return [
        [
            str(rank) if point.mean() is not None else "",
            *(short(values_of(point.overrides).get(axis, "")) for axis in axes),
            *(mean_text(point, i) for i in range(len(objectives))),
            jobs_text(point),
            seconds_text(point),
        ]
        for rank, point in enumerate(points, 1)
    ]


def values_of(overrides: Iterable[str]) -> dict[str, str]:
    """Axis → value of a point."""
    return {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}


def mean_text(point: PointResults, objective: int = 0) -> str:
    """`0.9912 ± 0.0021 (5)`: mean, 95 % confidence interval and number of seeds where there are several."""
    found = point.found(objective)
    if not found:
        [states] = [Counter(result.state for result in point.results)]
        return next(iter(states)) if objective == 0 and len(states) == 1 else "-"
    return statistics.mean_text(found)


def jobs_text(point: PointResults) -> str:
    """Numbers of a point's jobs: `1-5,9`."""
    numbers = sorted(result.entry.job for result in point.results)
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in ranges)


def seconds_text(point: PointResults) -> str:
    """Mean duration of a point's jobs."""
    found = [result.seconds for result in point.results if result.seconds is not None]
    return f"{sum(found) / len(found):.1f} s" if found else ""


def as_markdown(points: Sequence[PointResults], axes: Sequence[str], objectives: Sequence[Objective]) -> str:
    """The whole ranking as a Markdown table."""
    return markdown_table(["#", *header(axes, objectives)[1:]], rows(points, axes, objectives))


def as_csv(results: Iterable[Result], axes: Sequence[str], objectives: Sequence[Objective]) -> str:
    """Every job, a line each, for a spreadsheet or a data frame."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    asked = [(result, values_of(result.entry.overrides)) for result in results]
    repeats = [key for key in REPEATS if key == "seed" or any(key in values for _, values in asked)]
    names = ["job", *axes, *repeats, "state", *(o.metric for o in objectives), "seconds", "run", "cause"]
    writer.writerow(csv_row(names))
    for result, values in asked:
        cells: list[Any] = [result.entry.job, *(values.get(key, "") for key in (*axes, *repeats))]
        found = result.values or (None,) * len(objectives)
        first_line = result.cause.partition("\n")[0]
        writer.writerow(csv_row([*cells, result.state, *found, result.seconds, result.entry.run, first_line]))
    return out.getvalue()


def failures(results: Iterable[Result]) -> list[str]:
    """A line for each job that failed, with its log."""
    return [
        f"job {r.entry.job} ({' '.join(r.entry.overrides)}) failed: {r.cause.partition(chr(10))[0]}\n"
        f"    {_log(r)}".rstrip()
        for r in results
        if r.state is RunState.FAILED
    ]


def counts_text(results: Sequence[Result]) -> str:
    """`16 jobs: 14 finished, 2 failed`."""
    states = Counter(result.state for result in results)
    noun = "job" if len(results) == 1 else "jobs"
    return f"{len(results)} {noun}: {', '.join(f'{number} {state}' for state, number in states.items()) or 'none'}"


def best_text(points: Sequence[PointResults], objectives: Sequence[Objective]) -> str:
    """The best point, and in what it differs from the next."""
    found = [point for point in points if point.mean() is not None]
    if not found:
        return ""
    best = found[0]
    text = f"best: {' '.join(best.overrides) or 'the base'}  {objectives[0].metric} {mean_text(best)}"
    text += f", job {jobs_text(best)}"
    if len(found) > 1:
        mine, theirs = values_of(best.overrides), values_of(found[1].overrides)
        differing = [f"{key} {theirs.get(key, '-')}" for key in mine if mine[key] != theirs.get(key)]
        text += f"\nnext: {', '.join(differing) or 'the same point'}  {mean_text(found[1])}"
    return text


def _log(result: Result) -> str:
    log = result.run.rank_log(0) if result.entry.run else Path()
    return str(log) if result.entry.run and log.exists() else ""
