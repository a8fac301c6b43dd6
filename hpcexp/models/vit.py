"""Vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929).

Shapes: B batch, C channels, H height, W width, T tokens (patches), D embedding, N heads, E = D / N, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcexp.models.images import image_shape


class ViT(nn.Module):
    """Pre-norm transformer over square patches, with learned positions and a mean over tokens for a class token.

    The mean follows Beyer et al. 2022, arXiv:2205.01580. Takes images `(B, *in_shape)`, float, with sides that are
    multiples of `patch_size`, and gives `(B, num_classes)`. ValueError where the sizes do not fit.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_classes: int,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("ViT", in_shape)
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide images of {height}×{width} pixels")
        if dim % heads:
            raise ValueError(f"dim={dim} does not divide over heads={heads}")
        num_tokens = (height // patch_size) * (width // patch_size)
        self.embed = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.empty(1, num_tokens, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, int(dim * mlp_ratio), dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits or values `(B, K)`."""
        tokens_BTD = self.embed(x_BCHW).flatten(2).transpose(1, 2)
        tokens_BTD = self.blocks(self.dropout(tokens_BTD + self.position))
        logits_BK: Tensor = self.head(self.norm(tokens_BTD).mean(dim=1))
        return logits_BK


class Block(nn.Module):
    """Attention, then two linear layers on every token, each added to what came in."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Dropout(dropout))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """`(B, T, D)`, as it came."""
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD))
        out_BTD: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out_BTD


class Attention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """`(B, T, D)`, as it came."""
        batch, tokens, dim = x_BTD.shape
        qkv_3BNTE = self.qkv(x_BTD).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BNTE = F.scaled_dot_product_attention(*qkv_3BNTE)
        out_BTD: Tensor = self.out(mixed_BNTE.transpose(1, 2).reshape(batch, tokens, dim))
        return out_BTD
