"""What the image models ask of their input's shape."""

from __future__ import annotations

from collections.abc import Sequence


def image_shape(model: str, in_shape: Sequence[int]) -> tuple[int, int, int]:
    """`in_shape` as `(channels, height, width)`; ValueError where it is something else."""
    if len(in_shape) != 3:
        raise ValueError(
            f"{model} needs images, inputs of shape (channels, height, width), and these have {tuple(in_shape)}. "
            "Fix: model=mlp takes inputs of any shape."
        )
    channels, height, width = in_shape
    return channels, height, width
