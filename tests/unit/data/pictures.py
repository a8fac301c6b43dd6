"""Pictures of one colour, and folders of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def draw(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (20, 10)) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path
