"""Pictures of a run: loss, metrics and learning rate over its steps, and its confusion matrix.

Importing this module does not import matplotlib (1 s of CPU); drawing does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcexp.record.series import Series, read_series
from hpcexp.rundir import RunDir, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"train": "#4269d0", "val": "#ff725c", "test": "#3ca951"}
_GRID = "#e3e3e8"
_TEXT = "#2b2b33"
_DPI = 150
_SMOOTH = 50
"""Parts of a curve over which the smoothed line averages."""
_NOISY = 5.0
"""A curve that goes up and down this often its range is drawn smoothed."""
_MAX_NUMBERED = 25
"""Classes up to which every cell of a confusion matrix has its number."""
_MAX_TICKS = 40


def draw_pictures(run: RunDir, title: str) -> list[Path]:
    """Draw what `run` has the numbers for into its `plots/`; the files, all of them whole."""
    series = read_series(run.journal)
    drawn = [
        _save(_curves(metric, splits, title), run.plots / f"{_file_name(metric)}.png")
        for metric, splits in _by_metric(series).items()
        if any(len(curve.steps) > 1 for curve in splits.values())
    ]
    confusion = read_json(run.confusion)
    if confusion.get("matrix"):
        drawn.append(_save(_confusion(confusion["labels"], confusion["matrix"], title), run.plots / "confusion.png"))
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


def _curves(metric: str, splits: Mapping[str, Series], title: str) -> Figure:
    figure = _figure(7.0, 4.2)
    axes = figure.add_subplot()
    for split in (split for split in _COLORS if split in splits):
        _draw_split(axes, split, splits[split])
    _style(axes, metric, title)
    values = [v for curve in splits.values() for v in curve.values if math.isfinite(v)]
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    if len(splits) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=_TEXT)
    return figure


def _draw_split(axes: Axes, split: str, curve: Series) -> None:
    color = _COLORS[split]
    if split == "test":
        if curve.values:
            axes.axhline(curve.values[-1], color=color, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
            axes.plot([], [], color=color, linestyle=(0, (4, 3)), label=f"test {curve.values[-1]:.4g}")
        return
    last = f"{split} {curve.values[-1]:.4g}"
    if len(curve.values) > 2 * _SMOOTH and _is_noisy(curve.values):
        axes.plot(curve.steps, curve.values, color=color, linewidth=0.7, alpha=0.22, zorder=1)
        axes.plot(curve.steps, _smoothed(curve.values), color=color, linewidth=1.8, label=last, zorder=2)
        return
    marker = "o" if len(curve.values) <= 60 else None
    axes.plot(curve.steps, curve.values, color=color, linewidth=1.8, marker=marker, markersize=3, label=last, zorder=4)


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


def _confusion(labels: Sequence[Any], matrix: Sequence[Sequence[int]], title: str) -> Figure:
    """Rows are true classes, coloured by their share of the row; the numbers are counts."""
    import numpy as np

    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    size = len(labels)
    side = min(max(4.2, 0.42 * size + 1.8), 13.0)
    figure = _figure(side + 0.9, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", color=_TEXT, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=_TEXT, length=0)
    bar.outline.set_visible(False)
    if size <= _MAX_NUMBERED:
        _number_cells(axes, counts, shares)
    _label_classes(axes, [str(label) for label in labels])
    correct = counts.trace() / max(counts.sum(), 1.0)
    axes.set_title(f"{title}\n{correct:.2%} of {int(counts.sum()):,} correct", color=_TEXT, fontsize=10, loc="left")
    return figure


def _number_cells(axes: Axes, counts: Any, shares: Any) -> None:
    """Counts in their cells; empty cells stay empty, so that mistakes stand out."""
    font = 9 if len(counts) <= 12 else 6.5
    for row in range(len(counts)):
        for column in range(len(counts)):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else _TEXT
                text = f"{int(counts[row, column])}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=font)


def _label_classes(axes: Axes, labels: Sequence[str]) -> None:
    every = math.ceil(len(labels) / _MAX_TICKS)
    ticks = list(range(0, len(labels), every))
    names = [labels[i] if len(labels[i]) <= 18 else labels[i][:17] + "…" for i in ticks]
    upright = max(map(len, names)) > 3
    axes.set_xticks(ticks, names, rotation=90 if upright else 0)
    axes.set_yticks(ticks, names)
    axes.tick_params(labelsize=8 if len(ticks) <= 20 else 6.5, colors=_TEXT, length=0)
    axes.set_xlabel("predicted", color=_TEXT, fontsize=9)
    axes.set_ylabel("true", color=_TEXT, fontsize=9)
    axes.spines[:].set_visible(False)


def _style(axes: Axes, metric: str, title: str) -> None:
    axes.set_title(title, color=_TEXT, fontsize=10, loc="left")
    axes.set_xlabel("step", color=_TEXT, fontsize=9)
    axes.set_ylabel(metric, color=_TEXT, fontsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8b8c0")
    axes.tick_params(labelsize=8, colors=_TEXT, length=3, which="both")
    axes.margins(x=0.01)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own; pyplot would keep it in a global list."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
    part.replace(path)
    return path


def _file_name(metric: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in metric)
