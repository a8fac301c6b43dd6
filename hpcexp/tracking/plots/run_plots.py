"""Pictures of a run: loss, metrics and learning rate over its steps, and its confusion matrix.

Drawn by hand, as matplotlib takes a tenth of a second for each, a second for itself, and a sweep has many runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.untrusted import folders_problem
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read
from hpcexp.runs.records.results import Confusion
from hpcexp.runs.series import Series, read_series
from hpcexp.text.key_names import KeyTable, flat
from hpcexp.tracking.plots.axis_ticks import linear_ticks, log_ticks
from hpcexp.tracking.plots.canvas import Canvas, Place, text_width

_COLORS = {"train": "#4269d0", "val": "#ff725c", "test": "#3ca951"}
_FAINT = {"train": "#d5ddf5", "val": "#ffe0db"}
_GRID = "#e3e3e8"
_AXIS = "#b8b8c0"
_TEXT = "#2b2b33"
_BLUES = ("f7fbff", "deebf7", "c6dbef", "9ecae1", "6baed6", "4292c6", "2171b5", "08519c", "08306b")
"""From 0 to 1 (ColorBrewer)."""
_WIDTH, _HEIGHT = 920, 552
_SMALL, _NORMAL, _TITLE = 14.0, 16.0, 18.0
"""Sizes of text in pixels."""
_SMOOTH = 50
"""Parts of a curve over which the smoothed line averages."""
_NOISY = 5.0
"""A curve that goes up and down this often its range is drawn smoothed."""
_MAX_DOTS = 60
_MAX_NUMBERED = 25
"""Classes up to which every cell of a confusion matrix has its number."""
_MAX_TICKS = 40
_CELL, _MIN_SIDE, _MAX_SIDE = 64.0, 400.0, 1000.0
"""Pixels of a cell of a confusion matrix, and limits to the whole of it."""


def draw_pictures(run: RunDir, title: str) -> list[Path]:
    """Draw what `run` has the numbers for into its `plots/`; the files, all of them whole."""
    if (problem := folders_problem(run.path, [run.plots.name])) is not None:
        raise RunError(problem)
    series, files = read_series(run.journal), KeyTable({"": "confusion"})
    drawn = [
        _curves(metric, splits, title).save(run.plots / f"{flat(files[metric])}.png")
        for metric, splits in _by_metric(series).items()
        if any(len(curve.steps) > 1 for curve in splits.values())
    ]
    confusion = read(run.confusion, Confusion)
    if confusion.matrix:
        sheet = _confusion(confusion.labels, confusion.matrix, title)
        drawn.append(sheet.save(run.plots / "confusion.png"))
    return drawn


def are_drawn(run: RunDir) -> bool:
    """Whether the pictures are as new as what they show."""
    drawn = [picture.stat().st_mtime for picture in run.plots.glob("*.png")]
    shown = [file.stat().st_mtime for file in (run.journal, run.confusion) if file.exists()]
    return not shown or (bool(drawn) and min(drawn) >= max(shown))


def _by_metric(series: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """`train/loss` and `val/loss` as one picture `loss` with two curves; metrics of no split are left out."""
    metrics: dict[str, dict[str, Series]] = {}
    for key, curve in sorted(series.items()):
        split, _, metric = key.partition("/")
        if metric and split in _COLORS:
            metrics.setdefault(metric, {})[split] = curve
    return metrics


@dataclass(frozen=True)
class _Range:
    """What an axis shows, and where on the sheet."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""
    is_log: bool = False

    def ticks(self, at_most: int) -> list[tuple[float, str]]:
        """Numbers that stand at it."""
        return log_ticks(self.low, self.high) if self.is_log else linear_ticks(self.low, self.high, at_most)

    def pixel(self, value: float) -> float:
        """Where a value is; not a number where it is nowhere."""
        if not math.isfinite(value):
            return math.nan
        to = math.log10 if self.is_log else float
        return self.start + (to(value) - to(self.low)) / (to(self.high) - to(self.low)) * (self.end - self.start)


def _curves(metric: str, splits: Mapping[str, Series], title: str) -> Canvas:
    sheet = Canvas(_WIDTH, _HEIGHT)
    x, y = _axes(splits)
    _draw_axes(sheet, x, y, metric, title)
    shown = {split: splits[split] for split in _COLORS if split in splits}
    curves = {split: _points(curve, x, y) for split, curve in shown.items()}
    for split, curve in shown.items():
        _draw_split(sheet, split, curve, curves[split], (x, y))
    entries = [(split, f"{split} {curve.values[-1]:.4g}") for split, curve in shown.items() if curve.values]
    if len(entries) > 1:
        _draw_legend(sheet, entries, [point for points in curves.values() for point in points], (x, y))
    return sheet


def _axes(splits: Mapping[str, Series]) -> tuple[_Range, _Range]:
    """Both axes, with room for the numbers beside them."""
    values = [v for curve in splits.values() for v in curve.values if math.isfinite(v)] or [0.0, 1.0]
    steps = [step for split, curve in splits.items() if split != "test" for step in curve.steps] or [0, 1]
    is_log = min(values) > 0 and max(values) > 100 * min(values)
    low, high = _padded(min(values), max(values), 0.05, is_log=is_log)
    top, bottom = 48.0, _HEIGHT - 62.0
    y = _Range(low, high, bottom, top, is_log)
    left = 44.0 + max(text_width(text, _SMALL) for _, text in y.ticks(10) or [(0.0, "0")])
    return _Range(*_padded(min(steps), max(steps), 0.01, is_log=False), left, _WIDTH - 16.0), y


def _padded(low: float, high: float, part: float, *, is_log: bool) -> tuple[float, float]:
    """The range with some room at both ends."""
    if is_log:
        room = (high / low) ** part
        return low / room, high * room
    room = (high - low) * part or abs(high) * part or 1.0
    return low - room, high + room


def _draw_axes(sheet: Canvas, x: _Range, y: _Range, metric: str, title: str) -> None:
    for value, text in y.ticks(10):
        at = y.pixel(value)
        sheet.line([(x.start, at), (x.end, at)], _GRID, 1.0)
        sheet.text((x.start - 9, at), text, _SMALL, _TEXT, "rm")
    for value, text in x.ticks(8):
        at = x.pixel(value)
        sheet.line([(at, y.start), (at, y.end)], _GRID, 1.0)
        sheet.text((at, y.start + 9), text, _SMALL, _TEXT, "ma")
    sheet.line([(x.start, y.end), (x.start, y.start), (x.end, y.start)], _AXIS, 1.5)
    sheet.text((x.start, 30), title, _TITLE, _TEXT)
    sheet.text(((x.start + x.end) / 2, _HEIGHT - 14), "step", _NORMAL, _TEXT, "ms")
    sheet.text((16, (y.start + y.end) / 2), metric, _NORMAL, _TEXT, is_upright=True)


def _points(curve: Series, x: _Range, y: _Range) -> list[Place]:
    return [(x.pixel(step), y.pixel(value)) for step, value in zip(curve.steps, curve.values, strict=True)]


def _draw_split(sheet: Canvas, split: str, curve: Series, points: Sequence[Place], axes: tuple[_Range, _Range]) -> None:
    (x, y), color = axes, _COLORS[split]
    if split == "test":
        at = y.pixel(curve.values[-1]) if curve.values else math.nan
        sheet.line([(x.start, at), (x.end, at)], color, 2.0, is_dashed=True)
    elif len(points) > 2 * _SMOOTH and _is_noisy(curve.values):
        sheet.line(points, _FAINT[split], 1.0)
        smooth = Series(curve.steps, _smoothed(curve.values))
        sheet.line(_points(smooth, x, y), color, 2.5)
    else:
        sheet.line(points, color, 2.5)
        if len(points) <= _MAX_DOTS:
            sheet.dots(points, color, 3.5)


def _draw_legend(
    sheet: Canvas, entries: Sequence[tuple[str, str]], points: Sequence[Place], axes: tuple[_Range, _Range]
) -> None:
    """In the corner where it hides least."""
    x, y = axes
    width, height = 60.0 + max(text_width(text, _NORMAL) for _, text in entries), 28.0 * len(entries)
    corners = [(left, top) for left in (x.end - width, x.start + 12) for top in (y.end + 6, y.start - height - 6)]
    left, top = min(
        corners, key=lambda c: sum(0 <= px - c[0] <= width and 0 <= py - c[1] <= height for px, py in points)
    )
    for number, (split, text) in enumerate(entries):
        at = top + 28.0 * (number + 0.5)
        sheet.line([(left, at), (left + 40, at)], _COLORS[split], 2.5, is_dashed=split == "test")
        sheet.text((left + 50, at), text, _NORMAL, _TEXT, "lm")


def _is_noisy(values: Sequence[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    way = sum(abs(after - before) for before, after in pairwise(finite))
    return bool(finite) and way > _NOISY * (max(finite) - min(finite))


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential average over a `_SMOOTH`th of the curve, corrected for its start (as Adam's moments are)."""
    keep = 1.0 - _SMOOTH / len(values) if len(values) > _SMOOTH else 0.0
    average, weight, smooth = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = keep * average + (1.0 - keep) * value
            weight = keep * weight + (1.0 - keep)
        smooth.append(average / weight if weight else math.nan)
    return smooth


def _confusion(labels: Sequence[str], matrix: Sequence[Sequence[int]], title: str) -> Canvas:
    """Rows are true classes, coloured by their share of the row; the numbers are counts."""
    size = len(labels)
    cell = min(max(_CELL, _MIN_SIDE / size), _MAX_SIDE / size)
    side = cell * size
    names = [label if len(label) <= 18 else label[:17] + "…" for label in labels]
    font = _SMALL if size <= 20 else 11.0
    widest = max(text_width(name, font) for name in names)
    left, top = 50.0 + widest, 72.0
    is_upright = max(map(len, names)) > 3
    sheet = Canvas(round(left + side + 120), round(top + side + 44 + (widest if is_upright else font) + 12))
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    sheet.cells((left, top), (side, side), [[_blue(share) for share in row] for row in shares])
    if size <= _MAX_NUMBERED:
        _number_cells(sheet, matrix, shares, lambda i: (left + (i + 0.5) * cell, top + (i + 0.5) * cell), cell)
    _draw_scale(sheet, left + side + 24, top, side)
    for i in range(0, size, math.ceil(size / _MAX_TICKS)):
        middle = (i + 0.5) * cell
        sheet.text((left - 8, top + middle), names[i], font, _TEXT, "rm")
        below = top + side + 8
        if is_upright:
            at = below + text_width(names[i], font) / 2
            sheet.text((left + middle, at), names[i], font, _TEXT, is_upright=True)
        else:
            sheet.text((left + middle, below), names[i], font, _TEXT, "ma")
    correct, total = sum(matrix[i][i] for i in range(size)), sum(map(sum, matrix))
    sheet.text((left, 30), title, _TITLE, _TEXT)
    sheet.text((left, 56), f"{correct / max(total, 1):.2%} of {total:,} correct", _TITLE, _TEXT)
    sheet.text((left + side / 2, sheet.height - 12), "predicted", _NORMAL, _TEXT, "ms")
    sheet.text((18, top + side / 2), "true", _NORMAL, _TEXT, is_upright=True)
    return sheet


def _number_cells(
    sheet: Canvas,
    matrix: Sequence[Sequence[int]],
    shares: Sequence[Sequence[float]],
    place: Callable[[int], Place],
    cell: float,
) -> None:
    """Counts in their cells; empty cells stay empty, so that mistakes stand out."""
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            if count:
                color = "white" if shares[row][column] > 0.5 else _TEXT
                font = min(_NORMAL, 1.5 * cell / len(str(count)))
                sheet.text((place(column)[0], place(row)[1]), str(count), font, color, "mm")


def _draw_scale(sheet: Canvas, left: float, top: float, side: float) -> None:
    sheet.cells((left, top), (24.0, side), [[_blue(1 - i / 255)] for i in range(256)])
    for i in range(6):
        sheet.text((left + 32, top + side * (1 - i / 5)), f"{i / 5:.1f}", _SMALL, _TEXT, "lm")
    sheet.text((left + 78, top + side / 2), "share of the true class", _NORMAL, _TEXT, is_upright=True)


def _blue(share: float) -> tuple[int, int, int]:
    position = min(max(share, 0.0), 1.0) * (len(_BLUES) - 1)
    lower = min(int(position), len(_BLUES) - 2)
    light, dark = (bytes.fromhex(color) for color in _BLUES[lower : lower + 2])
    red, green, blue = (round(a + (b - a) * (position - lower)) for a, b in zip(light, dark, strict=True))
    return red, green, blue
