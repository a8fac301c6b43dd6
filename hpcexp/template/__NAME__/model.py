"""A small convolutional network for signals. Shapes: B batch, C channels, L length, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SignalNet(nn.Module):
    """Convolutions that halve the signal, the average over time, a linear layer.

    hpcexp fills in `in_shape` and `num_classes` from the data; conf/model/ has the other arguments.
    """

    def __init__(self, in_shape: Sequence[int], num_classes: int, channels: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise([in_shape[0], *channels]):
            layers += [
                nn.Conv1d(c_in, c_out, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
                nn.BatchNorm1d(c_out),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Logits `(B, K)`."""
        logits_BK: Tensor = self.head(self.features(x_BCL).mean(dim=-1))
        return logits_BK
