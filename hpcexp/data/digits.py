"""Handwritten digits, 8×8 pixels: 1,797 of them, in the package (`digits.md` says where they are from)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.data.source import DataFile, Source, Split, Tensors
from hpcexp.data_spec import Classes, DataSpec, TensorSpec
from hpcexp.errors import DataError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FILE = Path(__file__).with_name("digits.bin")
NUM_SAMPLES = 1797
SIDE = 8
INK = 16
"""Value of a pixel that is all ink."""
MEAN, STD = 4.9, 6.0
"""Of all pixels, rounded."""
TEST_FRACTION = 0.2


class Digits(Source):
    """Inputs `(1, 8, 8)`, ten classes, and always the same split.

    The split is by a fixed rule: the samples draw `random.Random(0).random()` in file order, and of each class, in the
    order of what they drew, the first 20 % are the test set, the next `val_fraction` of the class the validation set,
    the rest is for training. The test set does not depend on `val_fraction`.
    """

    def __init__(self, val_fraction: float = 0.1) -> None:
        self.val_fraction = val_fraction

    def facts(self) -> DataSpec:
        """Sizes and fingerprint; DataError where `problems` has something to say."""
        if problems := self.problems():
            raise DataError("\n\n".join(problems))
        split = f"val_fraction={self.val_fraction}".encode()
        return DataSpec(
            num_train=len(self.indices["train"]),
            num_val=len(self.indices["val"]),
            num_test=len(self.indices["test"]),
            inputs={"image": TensorSpec((1, SIDE, SIDE), axes=("channel", "row", "column"))},
            targets=Classes(tuple("0123456789")),
            fingerprint=hashlib.sha256(self.content + split).hexdigest(),
        )

    def problems(self) -> list[str]:
        """What is wrong with `data.val_fraction`, or with the installation."""
        if not FILE.is_file() or FILE.stat().st_size != NUM_SAMPLES * (SIDE * SIDE + 1):
            return [f"{FILE} is missing or damaged.\nFix: install hpcexp again."]
        if not 0 < self.val_fraction < 1 - TEST_FRACTION:
            return [
                f"data.val_fraction={self.val_fraction} must be above 0 and less than {1 - TEST_FRACTION}.\n"
                + f"{TEST_FRACTION:.0%} of the digits are the test set.\nFix: data.val_fraction=0.1"
            ]
        return []

    def files(self) -> tuple[DataFile, ...]:
        """The one file of the package."""
        return (DataFile(FILE, NUM_SAMPLES),)

    def load(self, split: Split) -> Tensors:
        """The samples of a split in file order."""
        import torch

        pixels = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
        images, labels = pixels[:-NUM_SAMPLES].view(-1, 1, SIDE, SIDE), pixels[-NUM_SAMPLES:]
        chosen = torch.tensor(self.indices[split])
        return Tensors(normalise(images[chosen]), labels[chosen].long())

    def read(self, path: Path) -> Tensor:
        """A picture of one digit, on light or dark ground, as one input `(1, 8, 8)`; DataError says why not."""
        from hpcexp.data.picture import open_picture, pixels

        picture = drawn(open_picture(path, channels=1), path)
        return normalise(pixels(picture).float() * (INK / 255))

    @cached_property
    def content(self) -> bytes:
        """The file as it is."""
        return FILE.read_bytes()

    @cached_property
    def indices(self) -> dict[Split, list[int]]:
        """Samples of each split, in file order."""
        return split_indices(self.content[-NUM_SAMPLES:], self.val_fraction)


def split_indices(labels: Sequence[int], val_fraction: float) -> dict[Split, list[int]]:
    """The fixed rule that `Digits` describes. Python promises the same `random()` for a seed in all versions."""
    rng = random.Random(0)  # noqa: S311 - a split, not a secret
    drawn_by_sample = [rng.random() for _ in labels]
    split: dict[Split, list[int]] = {"train": [], "val": [], "test": []}
    for label in sorted(set(labels)):
        members = [index for index, other in enumerate(labels) if other == label]
        members.sort(key=drawn_by_sample.__getitem__)
        num_test, num_val = round(TEST_FRACTION * len(members)), max(1, round(val_fraction * len(members)))
        split["test"] += members[:num_test]
        split["val"] += members[num_test : num_test + num_val]
        split["train"] += members[num_test + num_val :]
    return {name: sorted(members) for name, members in split.items()}


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0 to 16 with about zero mean and unit variance, float32."""
    return (pixels.float() - MEAN) / STD


def drawn(picture: Image.Image, path: Path) -> Image.Image:
    """The digit in a grey picture as the data set shows it: 8×8, ink bright, filling the square as it was drawn.

    A picture of 8×8 pixels is taken as it is. DataError where nothing is drawn.
    """
    from PIL import Image, ImageOps

    if picture.size == (SIDE, SIDE):
        return picture
    grey = picture.tobytes()
    if min(grey) == max(grey):
        raise DataError(f"{path} shows no digit: all of its pixels are the same.")
    if light_ground(picture):
        picture = ImageOps.invert(picture)
    picture = ImageOps.autocontrast(picture)
    digit = picture.crop(picture.point([0] * 128 + [255] * 128).getbbox())
    side = max(digit.size)
    square = Image.new("L", (side, side))
    square.paste(digit, ((side - digit.width) // 2, (side - digit.height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.BOX)


def light_ground(picture: Image.Image) -> bool:
    """Whether the four corners are, in the mean, nearer to the brightest pixel than to the darkest."""
    grey, last_row = picture.tobytes(), picture.width * (picture.height - 1)
    corners = [grey[0], grey[picture.width - 1], grey[last_row], grey[-1]]
    return sum(corners) / len(corners) > (min(grey) + max(grey)) / 2
