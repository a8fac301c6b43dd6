"""Random changes of training images, for `data.augment`: callables on a batch `(B, C, H, W)`, on its device.

Every image is changed by itself, by numbers of its own. Training draws those of the whole global batch from seed and
step, and each rank takes its samples': the same image is changed in the same way whatever the number of ranks, and
also where a run resumes after a crash. Called with images alone they draw from torch's global generator.

Shapes: B batch, C channels, H height, W width, D numbers that are drawn for an image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(ABC):
    """A change of images by `num_draws` uniform numbers for each."""

    num_draws: int

    def __call__(self, x_BCHW: Tensor, draws_DB: Tensor | None = None) -> Tensor:
        """The batch, changed by `draws_DB`, from [0, 1), on its device; by fresh ones where they are not given."""
        if draws_DB is None:
            draws_DB = torch.rand(self.num_draws, len(x_BCHW), device=x_BCHW.device)
        return self.change(x_BCHW, draws_DB)

    @abstractmethod
    def change(self, x_BCHW: Tensor, draws_DB: Tensor) -> Tensor:
        """The batch, changed."""


class RandomFlip(Augmentation):
    """Mirror half of the images left to right."""

    num_draws = 1

    def change(self, x_BCHW: Tensor, draws_DB: Tensor) -> Tensor:
        """The batch, some of it mirrored."""
        return torch.where((draws_DB[0] < 0.5).view(-1, 1, 1, 1), x_BCHW.flip(-1), x_BCHW)


class RandomShift(Augmentation):
    """Move images by up to `pixels` whole pixels each way; the border is repeated into what gets free."""

    num_draws = 2

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def change(self, x_BCHW: Tensor, draws_DB: Tensor) -> Tensor:
        """The batch, moved."""
        _, channels, height, width = x_BCHW.shape
        device = x_BCHW.device
        by_DB1 = (draws_DB * (2 * self.pixels + 1)).long().sub_(self.pixels)[..., None]
        rows_BH = (torch.arange(height, device=device) + by_DB1[0]).clamp_(0, height - 1)
        columns_BW = (torch.arange(width, device=device) + by_DB1[1]).clamp_(0, width - 1)
        source_B1HW = (rows_BH[:, :, None] * width + columns_BW[:, None, :])[:, None]
        source_BCHW = source_B1HW.expand(-1, channels, -1, -1)
        return x_BCHW.flatten(2).gather(2, source_BCHW.flatten(2)).view_as(x_BCHW)


class RandomAffine(Augmentation):
    """Turn, scale and move images, with interpolation; the border is repeated into what gets free.

    Each is uniform: up to `degrees` either way, by a factor of 1 ± `scale`, by up to `shift` of a side.
    """

    num_draws = 4

    def __init__(self, degrees: float = 0.0, scale: float = 0.0, shift: float = 0.0) -> None:
        self.angle = math.radians(degrees)
        self.scale = scale
        self.shift = shift

    def change(self, x_BCHW: Tensor, draws_DB: Tensor) -> Tensor:
        """The batch, transformed."""
        draws_DB = draws_DB * 2 - 1
        factor_B = 1 + self.scale * draws_DB[0]
        cos_B, sin_B = factor_B * torch.cos(self.angle * draws_DB[1]), factor_B * torch.sin(self.angle * draws_DB[1])
        right_B, down_B = 2 * self.shift * draws_DB[2:]
        matrix_B23 = torch.stack([cos_B, -sin_B, right_B, sin_B, cos_B, down_B], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix_B23, list(x_BCHW.shape), align_corners=False)
        return F.grid_sample(x_BCHW, grid.to(x_BCHW.dtype), padding_mode="border", align_corners=False)


class Compose(Augmentation):
    """Several of them, one after the other."""

    def __init__(self, transforms: Sequence[Augmentation]) -> None:
        self.transforms = transforms
        self.num_draws = sum(transform.num_draws for transform in transforms)

    def change(self, x_BCHW: Tensor, draws_DB: Tensor) -> Tensor:
        """The batch after all of them."""
        first = 0
        for transform in self.transforms:
            x_BCHW = transform.change(x_BCHW, draws_DB[first : first + transform.num_draws])
            first += transform.num_draws
        return x_BCHW


def draws_of(seed: int, step: int, num_draws: int, global_batch: int) -> Tensor:
    """`(num_draws, global_batch)` numbers from [0, 1), on the CPU: the same on every rank."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 1) % 2**63)
    return torch.rand(num_draws, global_batch, generator=generator)
