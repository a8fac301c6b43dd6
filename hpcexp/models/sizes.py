"""Parameter counts of our models from their arguments, exact and without torch, for planning."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any


def num_params(target: str, **given: Any) -> int | None:
    """Number of parameters of `target` (full path) built with the arguments that are given.

    None where the model is not ours, an argument that the count needs is not given, or its value cannot be counted
    with: building the model says what is wrong with it.
    """
    count = COUNTS.get(target)
    if count is None:
        return None
    needed = inspect.signature(count).parameters
    if not needed.keys() <= given.keys():
        return None
    try:
        return count(**{name: given[name] for name in needed})
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def mlp(in_shape: Sequence[int], num_classes: int, hidden: Sequence[int]) -> int:
    """Of `hpcexp.models.mlp.MLP`."""
    return sum(linear(a, b) for a, b in pairwise([math.prod(in_shape), *hidden, num_classes]))


def cnn(in_shape: Sequence[int], num_classes: int, channels: Sequence[int], convs_per_stage: int, grid: int) -> int:
    """Of `hpcexp.models.cnn.CNN`."""
    in_channels, *sides = in_shape
    widths = [in_channels, *channels]
    first = sum(conv_bn(a, b, 3) for a, b in pairwise(widths))
    further = sum((convs_per_stage - 1) * conv_bn(b, b, 3) for b in channels)
    left = math.prod(pooled_side(side, len(channels), grid) for side in sides)
    return first + further + linear(widths[-1] * left, num_classes)


def pooled_side(side: int, num_stages: int, grid: int) -> int:
    """What a CNN leaves of a side: halved after every stage but the last, then averaged to at most `grid`."""
    side = math.ceil(side / 2 ** max(0, num_stages - 1))
    return math.ceil(side / math.ceil(side / grid))


def resnet(in_shape: Sequence[int], num_classes: int, depths: Sequence[int], width: int, stem: str) -> int:
    """Of `hpcexp.models.resnet.ResNet`."""
    total = conv_bn(in_shape[0], width, {"cifar": 3, "imagenet": 7}.get(stem, 0))
    channels = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            fan_out = width * 2**stage
            total += conv_bn(channels, fan_out, 3) + conv_bn(fan_out, fan_out, 3)
            if channels != fan_out or (stage and not index):
                total += conv_bn(channels, fan_out, 1)
            channels = fan_out
    return total + linear(channels, num_classes)


def vit(in_shape: Sequence[int], num_classes: int, patch_size: int, dim: int, depth: int, mlp_ratio: float) -> int:
    """Of `hpcexp.models.vit.ViT`."""
    channels, height, width = in_shape
    num_tokens = (height // patch_size) * (width // patch_size)
    hidden = int(dim * mlp_ratio)
    embed = linear(channels * patch_size**2, dim) + num_tokens * dim
    block = linear(dim, 3 * dim) + linear(dim, dim) + linear(dim, hidden) + linear(hidden, dim) + 2 * norm(dim)
    return embed + depth * block + norm(dim) + linear(dim, num_classes)


def linear(fan_in: int, fan_out: int) -> int:
    """Weights and biases of a linear layer."""
    return fan_in * fan_out + fan_out


def norm(channels: int) -> int:
    """Scale and shift of a batch, group or layer norm."""
    return 2 * channels


def conv_bn(fan_in: int, fan_out: int, kernel: int) -> int:
    """A square convolution without bias and the norm after it."""
    return fan_in * fan_out * kernel**2 + norm(fan_out)


COUNTS: dict[str, Callable[..., int]] = {
    "hpcexp.models.mlp.MLP": mlp,
    "hpcexp.models.cnn.CNN": cnn,
    "hpcexp.models.resnet.ResNet": resnet,
    "hpcexp.models.vit.ViT": vit,
}
"""Full path of a model → the function that counts it, whose parameters are the arguments it needs."""
