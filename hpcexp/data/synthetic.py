"""Made-up data of any size and shape, to try a model, a machine or a configuration without a data set."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.data.source import SPLITS, Source, Split, Tensors
from hpcexp.data_spec import Classes, DataSpec, TensorSpec, Values
from hpcexp.errors import DataError

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Synthetic(Source):
    """Noise around a pattern for each class; without classes, a smooth function of the inputs to regress on.

    `noise` is the standard deviation around patterns of unit variance, and for regression that of what is added to the
    targets. With `multiple`, a sample has any number of classes, and the sum of their patterns. The same arguments give
    the same samples.
    """

    def __init__(
        self,
        num_train: int,
        num_val: int,
        num_test: int,
        input_shape: Sequence[int],
        num_classes: int | None,
        noise: float = 1.0,
        seed: int = 0,
        multiple: bool = False,
    ) -> None:
        self.num_samples: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.noise = noise
        self.seed = seed
        self.multiple = multiple

    def facts(self) -> DataSpec:
        """Sizes, and a digest of the arguments; DataError where `problems` has something to say."""
        if problems := self.problems():
            raise DataError("\n\n".join(problems))
        arguments: list[object] = [self.num_samples, self.input_shape, self.num_classes, self.noise, self.seed]
        arguments += ["multiple"] if self.multiple else []
        names = tuple(map(str, range(self.num_classes or 0)))
        return DataSpec(
            num_train=self.num_samples["train"],
            num_val=self.num_samples["val"],
            num_test=self.num_samples["test"],
            inputs={"inputs": TensorSpec(self.input_shape)},
            targets=Classes(names, multiple=self.multiple) if names else Values((1,)),
            fingerprint=hashlib.sha256(json.dumps(["synthetic", *arguments]).encode()).hexdigest(),
        )

    def problems(self) -> list[str]:
        """Arguments that no data can be made from."""
        problems = [
            f"data.num_{split}={count} must be at least 1.\nFix: data.num_{split}=64"
            for split, count in self.num_samples.items()
            if count < 1
        ]
        if not self.input_shape or min(self.input_shape) < 1:
            shape = ",".join(map(str, self.input_shape))
            problems.append(f"data.input_shape=[{shape}] is no shape of an input.\nFix: 'data.input_shape=[3,32,32]'")
        if self.num_classes is not None and self.num_classes < 2:
            problems.append(
                f"data.num_classes={self.num_classes} leaves nothing to tell apart.\n"
                "Fix: data.num_classes=10, or data.num_classes=null for regression."
            )
        if self.multiple and self.num_classes is None:
            problems.append("data.multiple=true, but there are no classes.\nFix: data.num_classes=10")
        if self.noise < 0:
            problems.append(f"data.noise={self.noise} is a standard deviation, at least 0.\nFix: data.noise=1.0")
        return problems

    def load(self, split: Split) -> Tensors:
        """Samples of a split; the patterns are the same in all splits."""
        import torch

        shared = torch.Generator().manual_seed(self.seed)
        own = torch.Generator().manual_seed(self.seed + 1 + SPLITS.index(split))
        if self.num_classes is None:
            return self.regression(self.num_samples[split], shared, own)
        return self.classification(self.num_samples[split], self.num_classes, shared, own)

    def classification(self, count: int, num_classes: int, shared: Generator, own: Generator) -> Tensors:
        """A pattern of the class and noise, scaled to unit variance."""
        import torch

        patterns = torch.randn(num_classes, *self.input_shape, generator=shared)
        if self.multiple:
            chosen = (torch.rand(count, num_classes, generator=own) < 2 / num_classes).float()
            summed = (chosen @ patterns.flatten(1)).view(count, *self.input_shape)
            noise = torch.randn(count, *self.input_shape, generator=own).mul_(self.noise)
            return Tensors(summed.add_(noise), chosen)
        targets = torch.randint(num_classes, (count,), generator=own)
        inputs = torch.randn(count, *self.input_shape, generator=own).mul_(self.noise).add_(patterns[targets])
        return Tensors(inputs.div_(math.hypot(1.0, self.noise)), targets)

    def regression(self, count: int, shared: Generator, own: Generator) -> Tensors:
        """A bent projection of standard normal inputs, and noise: targets `(N, 1)`."""
        import torch

        size = math.prod(self.input_shape)
        direction = torch.randn(size, 1, generator=shared).div_(math.sqrt(size))
        inputs = torch.randn(count, *self.input_shape, generator=own)
        projected = inputs.flatten(1) @ direction
        noise = torch.randn(count, 1, generator=own).mul_(self.noise)
        return Tensors(inputs, projected + torch.sin(2 * projected) / 2 + noise)

    def read(self, path: Path) -> Tensor:
        """Always DataError: there are no files of made-up data."""
        raise DataError(f"{path} cannot be read: this model was trained on made-up data, which has no files.")
