"""Picture files as tensors, through Pillow; pixels go straight from Pillow's buffer to torch's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.errors import DataError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}
"""Number of channels → Pillow's name for it."""


def open_picture(path: Path, channels: int) -> Image.Image:
    """The decoded picture in grey (1) or colour (3), turned as its EXIF tag says; DataError says why not."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert(MODES[channels])
    except FileNotFoundError as e:
        raise DataError(f"There is no file {path}.") from e
    except IsADirectoryError as e:
        raise DataError(f"{path} is a directory, not a picture.") from e
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"{path} cannot be read as a picture: {e}.\nFix: replace or remove the file.") from e


def pixels(picture: Image.Image) -> Tensor:
    """`(C, H, W)`, uint8."""
    import torch

    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1)
