"""The curves of a comparison: a panel for each metric, in it a line for each row, the mean over its seeds."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpcexp.compare.comparison import Comparison, Row
from hpcexp.compare.report import labels
from hpcexp.errors import ConfigError, RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.runs.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT, _GRID = "#2b2b33", "#e3e3e8"
_COLORS = ("#4269d0", "#ff725c", "#3ca951", "#efb118", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5")
_MOST_ROWS = len(_COLORS)
"""More lines cannot be distinguished."""
_PANEL, _LEGEND_LINE = (6.0, 3.8), 0.18
"""Inches."""
_MAX_COLUMNS = 2
_DPI = 150
_MAX_DOTS = 30
_LONGEST = 48
"""Characters of a label, as many as a panel is wide."""


class Band(NamedTuple):
    """Mean and range of some curves: at each step that one of them has, over those that have it."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def draw(whole: Comparison, file: Path) -> Path:
    """Draw the best rows into the PNG `file`; ConfigError where there is no curve, RunError where it cannot be."""
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--plot {file}: the picture is a PNG file.\nFix: --plot {file.with_suffix('.png')}")
    rows = whole.rows[:_MOST_ROWS]
    curves = {name: {row: band_of(curves_of(whole, row, name)) for row in rows} for name in _names(whole)}
    drawn = {name: bands for name, bands in curves.items() if any(len(band.steps) > 1 for band in bands.values())}
    if not drawn:
        raise ConfigError(
            f"--plot: no run has more than one value of {', '.join(curves) or 'any metric'}.\n"
            "Fix: --metric NAME, for one that was logged over the steps."
        )
    try:
        write_atomic(file, _png(drawn, _labels(whole, rows), len(whole.rows)))
    except OSError as e:
        raise RunError(f"{file} cannot be written: {e.strerror}.\nFix: --plot FILE.png where there is room.") from e
    return file


def curves_of(whole: Comparison, row: Row, metric: str) -> list[Series]:
    """Those of the runs that count in the row's mean, without what is no number."""
    return [_finite(whole.runs[i].curve_of(metric)) for i in whole.counted(row)]


def band_of(curves: Sequence[Series]) -> Band:
    """Mean, lowest and highest value at each step."""
    found: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            found.setdefault(step, []).append(value)
    steps = sorted(found)
    means = [sum(found[step]) / len(found[step]) for step in steps]
    return Band(steps, means, [min(found[step]) for step in steps], [max(found[step]) for step in steps])


def _names(whole: Comparison) -> list[str]:
    """What the metrics are over the steps: a test has no curve, but what it tests was validated."""
    names = [m.name for m in whole.metrics]
    return list(dict.fromkeys(f"val/{n.removeprefix('test/')}" if n.startswith("test/") else n for n in names))


def _labels(whole: Comparison, rows: Sequence[Row]) -> dict[Row, str]:
    """Each with its number in the table, as two may begin alike."""
    found = [f"{rank}: {label}" for rank, label in enumerate(labels(whole, rows), 1)]
    cut = [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in found]
    return dict(zip(rows, cut, strict=True))


def _finite(curve: Series) -> Series:
    kept = [pair for pair in zip(curve.steps, curve.values, strict=True) if math.isfinite(pair[1])]
    return Series([step for step, _ in kept], [value for _, value in kept])


def _png(drawn: Mapping[str, Mapping[Row, Band]], label_of: Mapping[Row, str], num_rows: int) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(drawn), _MAX_COLUMNS)
    lines = math.ceil(len(drawn) / columns)
    legend_height = _LEGEND_LINE * math.ceil(len(label_of) / columns)
    figure = Figure((_PANEL[0] * columns, _PANEL[1] * lines + legend_height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for panel in panels[len(drawn) :]:
        panel.set_axis_off()
    for panel, (name, bands) in zip(panels, drawn.items(), strict=False):
        _draw(panel, name, bands)
    handles = [
        Line2D([], [], color=color, label=label) for color, label in zip(_COLORS, label_of.values(), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    figure.suptitle(_note(drawn, len(label_of), num_rows), fontsize=8, color=_TEXT)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _note(drawn: Mapping[str, Mapping[Row, Band]], num_drawn: int, num_rows: int) -> str:
    is_shaded = any(band.low != band.high for bands in drawn.values() for band in bands.values())
    best = f"the best {num_drawn} of {num_rows}" if num_rows > num_drawn else ""
    bands_note = "lines: mean over seeds, shaded: from the lowest to the highest" if is_shaded else ""
    return "; ".join(filter(None, [best, bands_note]))


def _draw(panel: Axes, name: str, bands: Mapping[Row, Band]) -> None:
    from matplotlib.ticker import MaxNLocator

    for color, band in zip(_COLORS, bands.values(), strict=False):
        if not band.steps:
            continue
        marker = "o" if len(band.steps) <= _MAX_DOTS else ""
        panel.plot(band.steps, band.mean, color=color, marker=marker, markersize=3, linewidth=1.5)
        panel.fill_between(band.steps, band.low, band.high, color=color, alpha=0.15, linewidth=0)
    panel.set_title(name, loc="left", fontsize=10, color=_TEXT)
    panel.set_xlabel("step", fontsize=9, color=_TEXT)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
