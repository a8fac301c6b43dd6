"""`hpcexp.log_*`: for modules, callbacks and data modules of users.

Each stores its value under `name` and `step`, which is the one that training is at unless it is given, in `media/` of
the run directory; the sync process brings it to MLflow. Any rank may call them. Outside a job they raise RunError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcexp.media import encode
from hpcexp.media.active import recorder
from hpcexp.media.recorder import Content


def log_image(name: str, value: Any, step: int | None = None, *, caption: str | None = None) -> None:
    """Pictures: PIL image, array, tensor, path, or a list or batch of them.

    `(H, W)`, `(H, W, C)` or `(C, H, W)`; uint8, bool, or floats of 0–1.
    """
    to = recorder("hpcexp.log_image")
    to.put("image", _named("log_image", name), list(encode.images(name, value)), step)
    if caption is not None:
        log_text(f"{name}/caption", caption, step)


def log_figure(name: str, value: Any, step: int | None = None) -> None:
    """Figures of matplotlib or plotly."""
    to = recorder("hpcexp.log_figure")
    to.put("figure", _named("log_figure", name), list(encode.figures(name, value)), step)


def log_audio(
    name: str, value: Any, step: int | None = None, *, sample_rate: int | None = None, caption: str | None = None
) -> None:
    """Sound: samples of -1 to 1 or int16, `(samples,)` or `(channels, samples)`, or the path of a sound file."""
    to = recorder("hpcexp.log_audio")
    to.put("audio", _named("log_audio", name), [encode.audio(name, value, sample_rate)], step)
    if caption is not None:
        log_text(f"{name}/caption", caption, step)


def log_text(name: str, value: str, step: int | None = None) -> None:
    """A text."""
    to = recorder("hpcexp.log_text")
    to.put("text", _named("log_text", name), [Content(str(value).encode(), ".txt")], step)


def log_table(name: str, value: Any, step: int | None = None, *, columns: Sequence[str] | None = None) -> None:
    """A table: DataFrame, mapping of columns, or list of rows or of mappings."""
    to = recorder("hpcexp.log_table")
    to.put("table", _named("log_table", name), [encode.table(name, value, columns)], step)


def log_histogram(name: str, value: Any, step: int | None = None, *, bins: int | Sequence[float] | str = 64) -> None:
    """How the values of an array or tensor are spread."""
    to = recorder("hpcexp.log_histogram")
    to.put("histogram", _named("log_histogram", name), [encode.histogram(name, value, bins)], step)


def log_file(name: str, value: Any, step: int | None = None) -> None:
    """A copy of the file at a path, or bytes."""
    to = recorder("hpcexp.log_file")
    to.put("file", _named("log_file", name), [encode.file(name, value)], step)


def _named(word: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"hpcexp.{word} takes a name first, a text; it got a {type(name).__qualname__}.")
    return name
