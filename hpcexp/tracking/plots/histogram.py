"""The picture of a histogram that user code has logged."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from hpcexp.files.documents import read_json
from hpcexp.files.untrusted import UnusableFileError
from hpcexp.tracking.plots.canvas import Canvas

_WIDTH, _HEIGHT, _MARGIN, _TOP = 640, 400, 48.0, 56.0
_BAR, _TEXT, _AXIS = "#4269d0", "#2b2b33", "#b8b8c0"
_MOST_BARS = 1000


class Histogram(Struct, frozen=True):
    """`media/histograms/*/*.json`."""

    edges: list[float]
    """One more than counts, rising."""
    counts: list[float]
    not_finite: int = 0


def draw_histogram(file: Path, title: str, picture: Path) -> Path:
    """Draw the histogram of `file` into `picture`; UnusableFileError where it is none."""
    shown = read_json(file, Histogram)
    if not 0 < len(shown.counts) == len(shown.edges) - 1 <= _MOST_BARS:
        raise UnusableFileError(file, f"{len(shown.counts)} counts between {len(shown.edges)} edges")
    sheet = Canvas(_WIDTH, _HEIGHT)
    low, high, most = shown.edges[0], shown.edges[-1], max(*shown.counts, 1.0)
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - _TOP - _MARGIN
    floor = _HEIGHT - _MARGIN
    for left, right, count in zip(shown.edges[:-1], shown.edges[1:], shown.counts, strict=True):
        start, end = (_MARGIN + width * (edge - low) / ((high - low) or 1.0) for edge in (left, right))
        middle = (start + end) / 2
        if count:
            sheet.line([(middle, floor), (middle, floor - height * count / most)], _BAR, max(1.0, end - start - 1))
    sheet.line([(_MARGIN, floor), (_WIDTH - _MARGIN, floor)], _AXIS, 1)
    sheet.text((_MARGIN, 24.0), title, 16.0, _TEXT, "lm")
    for at, edge in ((_MARGIN, low), (_WIDTH - _MARGIN, high)):
        sheet.text((at, floor + 18), f"{edge:.4g}", 14.0, _TEXT, "mm")
    sheet.text((_MARGIN, _TOP - 8), f"{most:g}", 14.0, _TEXT, "lm")
    return sheet.save(picture)
