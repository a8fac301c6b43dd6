"""Small convolutional network. Shapes: B batch, C channels, H height, W width, K classes or outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from hpcexp.models.images import image_shape

_CHANNELS_PER_GROUP = 8


class CNN(nn.Module):
    """Stages of 3×3 convolutions, the image halved between them, then a linear layer.

    Before the linear layer, what is left of the image is averaged to at most `grid` × `grid`. Takes images
    `(B, *in_shape)`, float, of any size from 1×1 on; gives `(B, num_classes)`. `norm` is `batch`, or `group`, which
    looks at one image alone (Wu and He 2018; groups of 8 channels): it is the same whatever the batch or the number of
    ranks it is spread over.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (32, 64),
        convs_per_stage: int = 1,
        grid: int = 4,
        dropout: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        in_channels, height, width = image_shape("CNN", in_shape)
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise([in_channels, *channels])):
            if index:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                height, width = math.ceil(height / 2), math.ceil(width / 2)
            layers += conv_norm_relu(fan_in, fan_out, norm)
            for _ in range(convs_per_stage - 1):
                layers += conv_norm_relu(fan_out, fan_out, norm)
        pool = (math.ceil(height / grid), math.ceil(width / grid))
        if pool != (1, 1):
            layers.append(nn.AvgPool2d(pool, ceil_mode=True))
        layers.append(nn.Flatten())
        if dropout:
            layers.append(nn.Dropout(dropout))
        left = math.ceil(height / pool[0]) * math.ceil(width / pool[1])
        layers.append(nn.Linear([in_channels, *channels][-1] * left, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits or values `(B, K)`."""
        logits_BK: Tensor = self.layers(x_BCHW)
        return logits_BK


def conv_norm_relu(fan_in: int, fan_out: int, norm: str) -> list[nn.Module]:
    """A 3×3 convolution that keeps the size of the image; its bias is the norm's."""
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), _norm(norm, fan_out), nn.ReLU(inplace=True)]


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // _CHANNELS_PER_GROUP)), channels)
    raise ValueError(f"norm={kind}: there are batch and group")
