"""A comparison for people, as Markdown, and as CSV for a spreadsheet or a data frame."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hpcexp.compare.comparison import Comparison, Row
from hpcexp.compare.differences import Difference
from hpcexp.compare.statistics import CONFIDENCE, mean_text
from hpcexp.errors import listed
from hpcexp.runs.naming import short
from hpcexp.runs.records.status import RunState
from hpcexp.text.formatting import csv_row, markdown_table, table

BESIDE = 4
"""Up to so many rows stand beside each other, one column each, as there is room for all that they differ in."""
_LONGEST = 40
"""Characters of a cell."""
_MOST_VALUES = 3
"""Values that are listed one by one where the runs of a row differ."""
_DIGEST = re.compile(r"[0-9a-f]{32,64}")


class Line(NamedTuple):
    """One property of every row."""

    section: str
    name: str
    cells: list[str]


def answer(whole: Comparison, top: int) -> str:
    """The best `top` rows (0: all) and remarks on them."""
    shown = whole.rows[:top] if top else whole.rows
    lines = report_lines(whole, shown)
    parts = [_title(whole), _beside(lines) if len(shown) <= BESIDE else _below(lines)]
    if len(shown) < len(whole.rows):
        parts.append(f"and {len(whole.rows) - len(shown)} more: --top 0 shows them, --format csv has every run.")
    return "\n".join([parts[0], "", *parts[1:], "", *_remarks(whole, shown)])


def report_lines(whole: Comparison, rows: Sequence[Row]) -> list[Line]:
    """Every line about the rows, in order."""
    ranks = Line("", "", [str(rank) for rank in range(1, len(rows) + 1)])
    differing = [Line(d.section, d.key, [_cell(d, row) for row in rows]) for d in whole.columns]
    metric_lines = [
        Line("metrics", m.name, [mean_text(_values(whole, row, m.name)) for row in rows]) for m in whole.metrics
    ]
    if len(rows) > 1 and _has_seeds(whole, rows):
        metric_lines.insert(1, Line("metrics", "p", [_p_text(whole.p(row)) for row in rows]))
    return [ranks, *differing, *metric_lines, Line("", "runs", [_runs_text(whole, row) for row in rows])]


def as_markdown(whole: Comparison) -> str:
    """Every row, as a Markdown table."""
    lines = report_lines(whole, whole.rows)
    cells = [[line.name or "#" for line in lines], *zip(*(line.cells for line in lines), strict=True)]
    return markdown_table(cells[0], cells[1:])


def as_csv(whole: Comparison) -> str:
    """Every run, a line each, with the number of its row; values whole."""
    over = [key for key in whole.over if key == "seed" or any(key in run.config for run in whole.runs)]
    differing = [d for d in whole.columns if d.key not in ("experiment", *over)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["group", "experiment", "run", "state", *over]
    writer.writerow(csv_row([*head, *(d.key for d in differing), *(m.name for m in whole.metrics), "location"]))
    for number, row in enumerate(whole.rows, 1):
        for i in row:
            run = whole.runs[i]
            leading = [number, run.experiment, run.name, run.state, *(run.config.get(key) for key in over)]
            values = [whole.values[m.name][i] for m in whole.metrics]
            writer.writerow(csv_row([*leading, *(d.values[i] for d in differing), *values, run.location]))
    return out.getvalue()


def labels(whole: Comparison, rows: Sequence[Row]) -> list[str]:
    """A short name for each row, of what it differs in from the others: `lr=0.01, model=cnn`."""
    parts = [d for d in whole.columns if len({_cell(d, row) for row in rows}) > 1]
    chosen = [d for d in parts if d.section == "config"] or parts
    names = Counter(d.key.rpartition(".")[2] for d in chosen)
    short_names = [(d, last if names[last := d.key.rpartition(".")[2]] == 1 else d.key) for d in chosen]
    found = [", ".join(f"{name}={_cell(d, row)}" for d, name in short_names) for row in rows]
    return [label or _runs_text(whole, row) for label, row in zip(found, rows, strict=True)]


def _title(whole: Comparison) -> str:
    experiments = dict.fromkeys(run.experiment for run in whole.runs)
    rows = f" in {_counted(len(whole.rows), 'group')}" if whole.is_grouped and len(whole.rows) < len(whole.runs) else ""
    return f"{_counted(len(whole.runs), 'run')} of {listed(experiments)}{rows}"


def _below(lines: Sequence[Line]) -> str:
    """A line for each row."""
    return table([line.name for line in lines], zip(*(line.cells for line in lines), strict=True))


def _beside(lines: Sequence[Line]) -> str:
    """A column for each row."""
    rows: list[list[str]] = []
    section = ""
    for line in lines[1:]:
        if line.section and line.section != section:
            rows.append([line.section, *([""] * len(line.cells))])
        section = line.section
        rows.append(["  " * bool(section) + line.name, *line.cells])
    return table(["", *lines[0].cells], rows)


def _remarks(whole: Comparison, shown: Sequence[Row]) -> Iterator[str]:
    yield _same_text(whole)
    if not whole.columns and len(whole.runs) > 1:
        yield f"There is nothing recorded that they differ in{' but their seed' * (len(whole.rows) < len(whole.runs))}."
    if not _has_seeds(whole, shown):
        return
    yield f"±: {CONFIDENCE:.0%} confidence interval of the mean, by Student's t, and the number of {_over_text(whole)}."
    if len(whole.rows) > 1:
        metric = whole.metrics[0].name
        yield f"p: paired t-test of {metric} against row 1 over the {_over_text(whole)} that both have, two at least,"
        yield "   not corrected for how many rows there are."


def _over_text(whole: Comparison) -> str:
    """What rows are means over: `seeds`, or `combinations of seed and data.fold`."""
    several = [key for key in whole.over if len({run.config.get(key) for run in whole.runs}) > 1]
    return "seeds" if several in ([], ["seed"]) else f"combinations of {' and '.join(several)}"


def _same_text(whole: Comparison) -> str:
    """How much is the same."""
    if len(whole.runs) == 1:
        return "There is one run, and nothing that it could differ from."
    differing = {d.section for d in whole.columns}
    counted = {"config": "keys of the configuration", "environment": "facts of the environment"}
    parts = [
        f"{number} {counted[section]}" if section in counted else section
        for section, number in whole.same.items()
        if number and (section in counted or section not in differing)
    ]
    return f"The same in all: {', '.join(parts) or 'nothing'}."


def _has_seeds(whole: Comparison, rows: Iterable[Row]) -> bool:
    """Whether some row has several values of the first metric."""
    return any(len(_values(whole, row, m.name)) > 1 for row in rows for m in whole.metrics[:1])


def _values(whole: Comparison, row: Row, metric: str) -> list[float]:
    return list(whole.numbers(row, metric).values())


def _cell(difference: Difference, row: Row) -> str:
    """What the runs of a row have, short enough to be read beside others."""
    values = list(dict.fromkeys(difference.values[i] for i in row))
    if len(values) > _MOST_VALUES:
        return f"{len(values)} values"
    return ", ".join("-" if value is None else _shortened(value) for value in values)


def _shortened(value: str) -> str:
    text = value[:8] if _DIGEST.fullmatch(value) else short(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _p_text(p: float | None) -> str:
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.2g}"


def _runs_text(whole: Comparison, row: Row) -> str:
    """`fff94895 +2, 1 failed`: one to look at, how many more, and those that have not finished."""
    runs = whole.of(row)
    states = Counter(run.state for run in runs if run.state != RunState.FINISHED)
    more = f" +{len(runs) - 1}" if len(runs) > 1 else ""
    parts = [f"{number} {state}" if len(runs) > 1 else state for state, number in states.items()]
    return ", ".join([f"{runs[0].id}{more}", *parts])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
