"""Residual network (He et al. 2015, arXiv:1512.03385). Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hpcexp.models.images import image_shape

STEMS = ("cifar", "imagenet")


class ResNet(nn.Module):
    """Stages of basic blocks; each stage after the first halves the image and doubles the channels.

    `stem=cifar` keeps the image's size before the first stage, `stem=imagenet` quarters it. Depths (3, 3, 3) at width
    16 are the paper's ResNet-20 (section 4.2, but with projections as shortcuts), depths (2, 2, 2, 2) at width 64 with
    the ImageNet stem its ResNet-18. Takes images `(B, *in_shape)`, float, and gives `(B, num_classes)`.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_classes: int,
        depths: Sequence[int] = (3, 3, 3),
        width: int = 16,
        stem: str = "cifar",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        in_channels, _, _ = image_shape("ResNet", in_shape)
        self.stem = make_stem(stem, in_channels, width)
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        self.apply(init_convolution)
        self.apply(init_residual)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits or values `(B, K)`."""
        features_BC = self.blocks(self.stem(x_BCHW)).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(self.dropout(features_BC))
        return logits_BK


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False), nn.BatchNorm2d(fan_out)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`(B, fan_out, H / stride, W / stride)`, rounded up."""
        h_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        return F.relu(self.norm2(self.conv2(h_BCHW)) + self.shortcut(x_BCHW))


def make_stem(stem: str, in_channels: int, width: int) -> nn.Module:
    """The layers before the first stage; ValueError for a name that is none of `STEMS`."""
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r} is none of {', '.join(STEMS)}")
    norm = [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    if stem == "cifar":
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), *norm)
    conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, *norm, nn.MaxPool2d(3, stride=2, padding=1))


def init_convolution(module: nn.Module) -> None:
    """Initial weights that keep the variance through ReLUs (He et al. 2015, arXiv:1502.01852)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def init_residual(module: nn.Module) -> None:
    """Start every block as its shortcut (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
    if isinstance(module, BasicBlock):
        nn.init.zeros_(module.norm2.weight)
