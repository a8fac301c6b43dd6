"""Random changes of training images, for `data.augment`: callables on a batch `(B, C, H, W)`, on its device.

They draw from torch's global generator, which a run seeds, saves and restores. Every image is changed by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class RandomFlip:
    """Mirror half of the images left to right."""

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The batch, some of it mirrored."""
        flip_B = torch.rand(len(x_BCHW), device=x_BCHW.device) < 0.5
        return torch.where(flip_B.view(-1, 1, 1, 1), x_BCHW.flip(-1), x_BCHW)


class RandomShift:
    """Move images by up to `pixels` whole pixels each way; the border is repeated into what gets free."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The batch, moved."""
        batch, channels, height, width = x_BCHW.shape
        device = x_BCHW.device
        row_B1, column_B1 = torch.randint(-self.pixels, self.pixels + 1, (2, batch, 1), device=device)
        rows_BH = (torch.arange(height, device=device) + row_B1).clamp_(0, height - 1)
        columns_BW = (torch.arange(width, device=device) + column_B1).clamp_(0, width - 1)
        source_B1HW = (rows_BH[:, :, None] * width + columns_BW[:, None, :])[:, None]
        source_BCHW = source_B1HW.expand(-1, channels, -1, -1)
        return x_BCHW.flatten(2).gather(2, source_BCHW.flatten(2)).view_as(x_BCHW)


class RandomAffine:
    """Turn, scale and move images, with interpolation; the border is repeated into what gets free.

    Each is uniform: up to `degrees` either way, by a factor of 1 ± `scale`, by up to `shift` of a side.
    """

    def __init__(self, degrees: float = 0.0, scale: float = 0.0, shift: float = 0.0) -> None:
        self.angle = math.radians(degrees)
        self.scale = scale
        self.shift = shift

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The batch, transformed."""
        draw_4B = torch.rand(4, len(x_BCHW), device=x_BCHW.device).mul_(2).sub_(1)
        factor_B = 1 + self.scale * draw_4B[0]
        cos_B, sin_B = factor_B * torch.cos(self.angle * draw_4B[1]), factor_B * torch.sin(self.angle * draw_4B[1])
        right_B, down_B = 2 * self.shift * draw_4B[2:]
        matrix_B23 = torch.stack([cos_B, -sin_B, right_B, sin_B, cos_B, down_B], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix_B23, list(x_BCHW.shape), align_corners=False)
        return F.grid_sample(x_BCHW, grid.to(x_BCHW.dtype), padding_mode="border", align_corners=False)


class Compose:
    """Several of them, one after the other."""

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = transforms

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The batch after all of them."""
        for transform in self.transforms:
            x_BCHW = transform(x_BCHW)
        return x_BCHW
