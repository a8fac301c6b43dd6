"""A small character GPT and the plain loop that trains it."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

TEXT = Path(__file__).with_name("text.txt")


class Characters(Dataset):
    def __init__(self, split: str, block: int = 64):
        text = TEXT.read_text(encoding="utf-8")
        self.chars = sorted(set(text))
        ids = torch.tensor([self.chars.index(c) for c in text])
        cut = int(0.9 * len(ids))
        self.ids, self.block = ids[:cut] if split == "train" else ids[cut:], block

    def __len__(self):
        return (len(self.ids) - 1) // self.block

    def __getitem__(self, i):
        chunk = self.ids[i * self.block : (i + 1) * self.block + 1]
        return chunk[:-1], chunk[1:]


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.ln1, self.ln2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, vocab: int, block: int = 64, layers: int = 2, heads: int = 2, width: int = 48):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocab))

    def forward(self, ids, targets=None):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        logits = self.head(self.blocks(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


def main(epochs: int = 3, lr: float = 0.003, batch_size: int = 16) -> None:
    torch.manual_seed(1)
    train, val = Characters("train"), Characters("val")
    model = GPT(len(train.chars))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for epoch in range(epochs):
        for ids, targets in torch.utils.data.DataLoader(train, batch_size, shuffle=True):
            loss = model(ids, targets)[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            losses = [model(i, t)[1].item() for i, t in torch.utils.data.DataLoader(val, batch_size)]
        print(f"epoch {epoch}: val loss {sum(losses) / len(losses):.3f}")


if __name__ == "__main__":
    main()
