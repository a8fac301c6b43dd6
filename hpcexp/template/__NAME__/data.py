"""Noisy waveforms of four kinds. Planning imports this file, so torch is imported only where samples are made."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.data.source import SPLITS, Source, Split, Tensors
from hpcexp.errors import DataError
from hpcexp.data_spec import Classes, DataSpec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("sawtooth", "sine", "square", "triangle")


class Waveforms(Source):
    """Signals of one channel with random frequency and phase, and normal noise of deviation `noise` around them.

    The same arguments give the same samples, on every machine and in every run.
    """

    def __init__(
        self, num_train: int = 1600, num_val: int = 400, num_test: int = 800, length: int = 64, noise: float = 0.5
    ) -> None:
        self.sizes: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.length = length
        self.noise = noise

    def problems(self) -> list[str]:
        """Everything wrong with the arguments: what, why, and how to fix it."""
        problems = [
            f"data.num_{split}={size} leaves the {split} split empty.\nFix: data.num_{split}=400"
            for split, size in self.sizes.items()
            if size < 1
        ]
        if self.length < 16:
            problems.append(f"data.length={self.length} is too short to show a waveform.\nFix: data.length=64")
        if self.noise < 0:
            problems.append(f"data.noise={self.noise} is a standard deviation, at least 0.\nFix: data.noise=0.5")
        return problems

    def facts(self) -> DataSpec:
        """What `hpcexp plan` shows. The fingerprint covers everything that changes a sample."""
        if problems := self.problems():
            raise DataError("\n\n".join(problems))
        recipe = f"waveforms-1 {self.sizes} {self.length} {self.noise}"
        return DataSpec(
            num_train=self.sizes["train"],
            num_val=self.sizes["val"],
            num_test=self.sizes["test"],
            inputs={"signal": TensorSpec((1, self.length), axes=("channel", "time"))},
            targets=Classes(KINDS),
            fingerprint=hashlib.sha256(recipe.encode()).hexdigest(),
        )

    def load(self, split: Split) -> Tensors:
        """Inputs `(N, 1, length)` and kinds `(N,)` of one split; each split has its own seed."""
        import torch

        size = self.sizes[split]
        seeded = torch.Generator().manual_seed(SPLITS.index(split))
        kinds = torch.randint(len(KINDS), (size,), generator=seeded)
        cycles = torch.rand(size, 1, generator=seeded) * 3 + 1
        start = torch.rand(size, 1, generator=seeded)
        phase = (start + cycles * torch.linspace(0, 1, self.length)) % 1
        all_kinds = torch.stack(
            [2 * phase - 1, torch.sin(2 * math.pi * phase), torch.sign(0.5 - phase), 4 * (phase - 0.5).abs() - 1]
        )
        clean = all_kinds[kinds, torch.arange(size)]
        noise = torch.randn(size, self.length, generator=seeded) * self.noise
        return Tensors((clean + noise).unsqueeze(1), kinds)

    def read(self, path: Path) -> Tensor:
        """One signal from a text file of `length` numbers, for `hpcexp predict`."""
        import torch

        try:
            values = [float(word) for word in path.read_text(encoding="utf-8").split()]
        except (OSError, ValueError) as e:
            raise DataError(f"{path} cannot be read as numbers: {e}.") from e
        if len(values) != self.length:
            raise DataError(f"{path} has {len(values)} numbers, but the model was trained on {self.length}.")
        return torch.tensor(values).unsqueeze(0)
