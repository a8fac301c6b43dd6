"""A sheet to draw a diagram on: smooth lines, areas and text, as a PNG file, in a hundredth of a second.

Importing this module does not import Pillow; drawing does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

Place = tuple[float, float]
"""Pixels from the left and from the top."""
_FINE = 2
"""Lines are drawn so many times as large, and scaled down: that makes them smooth."""
_DASH = (11.0, 7.0)


class _Text(NamedTuple):
    at: Place
    text: str
    size: float
    color: str
    anchor: str
    is_upright: bool


class Canvas:
    """A white sheet of `width` × `height` pixels. Text is above everything else."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * _FINE, height * _FINE), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._texts: list[_Text] = []

    def line(self, points: Sequence[Place], color: str, width: float, *, is_dashed: bool = False) -> None:
        """A line through the points, broken where one of them is not finite."""
        for part in _unbroken(points):
            for piece in _dashes(part) if is_dashed else [part]:
                fine = [(x * _FINE, y * _FINE) for x, y in piece]
                self._draw.line(fine, fill=color, width=round(width * _FINE), joint="curve")

    def dots(self, points: Sequence[Place], color: str, radius: float) -> None:
        """A dot on each point that is finite."""
        for x, y in (point for part in _unbroken(points) for point in part):
            box = (x - radius) * _FINE, (y - radius) * _FINE, (x + radius) * _FINE, (y + radius) * _FINE
            self._draw.ellipse(box, fill=color)

    def cells(self, at: Place, size: Place, colors: Sequence[Sequence[tuple[int, int, int]]]) -> None:
        """Rows of coloured cells in an area of `size`."""
        from PIL import Image

        cells = Image.new("RGB", (len(colors[0]), len(colors)))
        cells.putdata([color for row in colors for color in row])
        fine = round(size[0] * _FINE), round(size[1] * _FINE)
        self._image.paste(cells.resize(fine, Image.Resampling.NEAREST), (round(at[0] * _FINE), round(at[1] * _FINE)))

    def text(
        self, at: Place, text: str, size: float, color: str, anchor: str = "ls", *, is_upright: bool = False
    ) -> None:
        """A line of text. `anchor`: what of it is at the place, in Pillow's letters (`ls`: the baseline's left end).

        `is_upright`: turned by a quarter, to be read from the right; its middle is then at the place.
        """
        self._texts.append(_Text(at, text, size, color, anchor, is_upright))

    def save(self, path: Path) -> Path:
        """Have the PNG file, whole or not at all."""
        from PIL import ImageDraw

        sheet = self._image.reduce(_FINE)
        draw = ImageDraw.Draw(sheet)
        for text in self._texts:
            if text.is_upright:
                _upright(sheet, text)
            else:
                draw.text(text.at, text.text, fill=text.color, font=_font(text.size), anchor=text.anchor)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        sheet.save(part, "PNG", compress_level=1)
        part.replace(path)
        return path


def text_width(text: str, size: float) -> float:
    """Pixels that a line of text takes."""
    return float(_font(size).getlength(text))


@lru_cache
def _font(size: float) -> Font:
    """matplotlib's, which has the letters of most alphabets; Pillow's own has few."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    path = Path(found.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found else Path()
    return ImageFont.truetype(str(path), size) if path.is_file() else ImageFont.load_default(size)


def _upright(sheet: Any, text: _Text) -> None:
    from PIL import Image, ImageDraw

    width, height = math.ceil(text_width(text.text, text.size)) + 2, math.ceil(1.5 * text.size)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((width / 2, height / 2), text.text, fill=255, font=_font(text.size), anchor="mm")
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    left, top = round(text.at[0] - height / 2), round(text.at[1] - width / 2)
    sheet.paste(text.color, (left, top, left + height, top + width), mask)


def _unbroken(points: Sequence[Place]) -> Iterator[list[Place]]:
    part: list[Place] = []
    for point in points:
        if math.isfinite(point[0]) and math.isfinite(point[1]):
            part.append(point)
        elif part:
            yield part
            part = []
    if part:
        yield part


def _dashes(points: Sequence[Place]) -> Iterator[list[Place]]:
    """Pieces of a straight line from the first point to the last."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    length = math.hypot(x1 - x0, y1 - y0)
    dash, gap = _DASH
    for number in range(math.ceil(length / (dash + gap))):
        ends = number * (dash + gap) / length, min(1.0, (number * (dash + gap) + dash) / length)
        yield [(x0 + end * (x1 - x0), y0 + end * (y1 - y0)) for end in ends]
