"""Values of user code as files: PNG, WAV, text, JSON. numpy and Pillow are imported when they are needed."""

from __future__ import annotations

import json
import math
import wave
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hpcexp.media.recorder import Content, say_once

_CHANNELS = (1, 3, 4)
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def images(name: str, value: Any, layout: str | None = None) -> Iterator[Content]:
    """One picture, or several of a list or batch, as PNG.

    PIL image, path, figure, array or tensor: `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels, with a batch
    axis before; uint8, bool, or floats of 0–1. Other ranges are scaled to it, which is said. `layout`: `CHW`, `NHWC`, …
    """
    if isinstance(value, list | tuple) and value and not all(isinstance(item, int | float) for item in value):
        for item in value:
            yield from images(name, item, layout)
        return
    if hasattr(value, "savefig"):
        yield from figures(name, value)
        return
    if isinstance(value, str | Path):
        from PIL import Image

        value = Image.open(value)
    for wrapped in ("to_pil", "image"):  # of MLflow, of wandb
        if hasattr(value, wrapped) and not hasattr(value, "save"):
            value = value.to_pil() if wrapped == "to_pil" else value.image
    if hasattr(value, "save") and hasattr(value, "mode"):
        yield Content(_png(value), ".png")
        return
    for picture in _pictures(name, _array(value, "image", name), layout, is_tensor=hasattr(value, "detach")):
        yield Content(_png(picture), ".png")


def figures(name: str, value: Any, suffix: str | None = None) -> Iterator[Content]:
    """matplotlib figures and axes as PNG, or by `suffix`; plotly's as HTML. Several of a list."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from figures(name, item, suffix)
        return
    if hasattr(value, "gcf"):  # pyplot itself
        value = value.gcf()
    if not hasattr(value, "savefig") and hasattr(value, "get_figure"):  # axes
        value = value.get_figure()
    if hasattr(value, "savefig"):
        made = BytesIO()
        value.savefig(made, format=(suffix or ".png").removeprefix("."), bbox_inches="tight")
        yield Content(made.getvalue(), suffix or ".png")
    elif hasattr(value, "to_html"):
        yield Content(value.to_html(include_plotlyjs="cdn").encode(), ".html")
    else:
        raise _wrong("figure", name, value, "a matplotlib or plotly figure")


def audio(name: str, value: Any, sample_rate: int | None) -> Content:
    """A WAV file of 16 bits: samples of -1 to 1 or int16, `(samples,)`, `(channels, samples)`, `(samples, channels)`.

    A path is copied as it is.
    """
    import numpy as np

    if isinstance(value, str | Path):
        return Content(Path(value).read_bytes(), Path(value).suffix.lower() or ".wav")
    if not sample_rate:
        raise ValueError(f"audio {name!r} needs its sample_rate, in samples a second.")
    samples = np.squeeze(_array(value, "audio", name))
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if samples.ndim not in (1, 2) or not samples.size:
        raise ValueError(f"audio {name!r} has the shape {samples.shape}: neither samples nor channels and samples.")
    if samples.dtype != np.int16:
        loudest = float(np.abs(np.nan_to_num(samples.astype(np.float64))).max())
        if loudest > 1:
            say_once(f"audio {name!r} has samples outside -1–1: scaled to that")
        samples = np.nan_to_num(samples.astype(np.float64)) / max(loudest, 1.0)
        samples = np.round(samples * 32767).astype(np.int16)
    made = BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(int(sample_rate))
        file.writeframes(samples.astype("<i2").tobytes())
    return Content(made.getvalue(), ".wav")


def table(name: str, value: Any, columns: Sequence[str] | None = None) -> Content:
    """Columns and rows in JSON, as MLflow has tables: of a DataFrame, mapping of columns, list of rows or mappings."""
    names, rows = _columns_and_rows(name, value, columns)
    if any(len(row) != len(names) for row in rows):
        raise ValueError(f"table {name!r}: a row has not as many values as there are columns ({len(names)}).")
    cells = [[_cell(cell) for cell in row] for row in rows]
    return Content(json.dumps({"columns": list(map(str, names)), "data": cells}, ensure_ascii=False).encode(), ".json")


def rows(path: str, value: Any) -> Content:
    """Rows of a table with that path among the artifacts."""
    if not str(path).endswith(".json"):
        raise ValueError(f"log_table: {path} does not end in .json, the form in which hpcexp stores tables.")
    return table(str(path), value)


def histogram(name: str, value: Any, bins: int | Sequence[float] | str) -> Content:
    """Edges and counts in JSON, and how many values were not finite."""
    import numpy as np

    values = _array(value, "histogram", name).astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite, bins=bins)
    made = {"edges": edges.tolist(), "counts": counts.tolist(), "not_finite": int(values.size - finite.size)}
    return Content(json.dumps(made).encode(), ".json")


def file(name: str, value: Any) -> Content:
    """A copy of a file, or bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return Content(bytes(value), "")
    if not isinstance(value, str | Path):
        raise _wrong("file", name, value, "a path or bytes")
    return Content(Path(value).read_bytes(), Path(value).suffix)


def document(value: Any) -> str:
    """A mapping or list as JSON, with texts for what JSON does not have."""
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)


def _columns_and_rows(name: str, value: Any, columns: Sequence[str] | None) -> tuple[list[Any], list[list[Any]]]:
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return list(value.columns), [list(row) for row in value.itertuples(index=False, name=None)]
    if isinstance(value, Mapping):
        if all(
            (isinstance(column, Sequence | Iterator) and not isinstance(column, str)) or hasattr(column, "tolist")
            for column in value.values()
        ):
            held = [column.tolist() if hasattr(column, "tolist") else list(column) for column in value.values()]
            if len({len(column) for column in held}) > 1:
                raise ValueError(f"table {name!r}: its columns are not of one length.")
            return list(value), [list(row) for row in zip(*held, strict=True)]
        return list(value), [list(value.values())]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong("table", name, value, "a DataFrame, a mapping of columns, or a list of rows")
    if value and all(isinstance(row, Mapping) for row in value):
        names = list(columns or dict.fromkeys(key for row in value for key in row))
        return names, [[row.get(key) for key in names] for row in value]
    rows = [list(row) if isinstance(row, Sequence) and not isinstance(row, str) else [row] for row in value]
    return list(columns) if columns is not None else [str(i) for i in range(len(rows[0]) if rows else 0)], rows


def _cell(value: Any) -> Any:
    if (hasattr(value, "item") and getattr(value, "size", 1) in (0, 1)) or hasattr(value, "detach"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool | type(None)):
        return value
    if hasattr(value, "savefig") or (hasattr(value, "save") and hasattr(value, "mode")):
        raise TypeError("A table holds numbers and texts. Fix: log pictures with log_image.")
    return str(value)


def _array(value: Any, kind: str, name: str) -> Any:
    """As numpy's; bfloat16, which that lacks, as float32."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return value.numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise _wrong(kind, name, value, "an array of numbers")
    return array


def _pictures(name: str, array: Any, layout: str | None, *, is_tensor: bool) -> Iterator[Any]:
    """Each `(H, W)` or `(H, W, C)` of an array, uint8."""
    from PIL import Image

    axes = layout or _layout(name, array.shape, is_tensor=is_tensor)
    if len(axes) != array.ndim:
        raise ValueError(f"image {name!r} has the shape {array.shape}, which does not go with the layout {axes}.")
    order = [axes.index(axis) for axis in "NHWC" if axis in axes]
    pixels = _bytes(name, array.transpose(order))
    for picture in pixels if "N" in axes else [pixels]:
        channels = picture.shape[-1] if "C" in axes else 1
        if channels not in _CHANNELS:
            raise ValueError(f"image {name!r} has {channels} channels: there are 1, 3 or 4.")
        yield Image.fromarray(picture[..., 0] if "C" in axes and channels == 1 else picture)


def _layout(name: str, shape: tuple[int, ...], *, is_tensor: bool) -> str:
    if len(shape) == 2:
        return "HW"
    first, last = shape[-3] in _CHANNELS if len(shape) > 2 else False, shape[-1] in _CHANNELS
    if len(shape) in (3, 4) and (first or last):
        return "N" * (len(shape) == 4) + ("CHW" if first and (is_tensor or not last) else "HWC")
    raise ValueError(
        f"image {name!r} has the shape {shape}: neither (H, W), (H, W, C) nor (C, H, W), nor many of them."
    )


def _bytes(name: str, array: Any) -> Any:
    import numpy as np

    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    is_float = array.dtype.kind == "f"
    values = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high, full = float(values.min(initial=0)), float(values.max(initial=0)), 1.0 if is_float else 255.0
    if low < 0 or high > full:
        low = float(values.min())
        say_once(f"image {name!r} has values outside 0–{full:g}: scaled to that")
        values = (values - low) / ((high - low) or 1.0) * full
    return np.round(values * (255.0 / full)).astype(np.uint8)


def _png(picture: Any) -> bytes:
    made = BytesIO()
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(made, format="PNG")
    return made.getvalue()


def _wrong(kind: str, name: str, value: Any, wanted: str) -> TypeError:
    return TypeError(f"{kind} {name!r} is a {type(value).__module__}.{type(value).__qualname__}, not {wanted}.")
