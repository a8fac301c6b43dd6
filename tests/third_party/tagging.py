"""A third party's task and data: the kind of each number in a sequence of any length, in batches with names."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcexp.data.source import Source, Split
from hpcexp.data_spec import Classes, DataSpec, TensorSpec
from hpcexp.errors import DataError
from hpcexp.train.tasks.task import Evaluated, Mode, Prediction, Sum, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

TAGS = ("even", "odd", "after odd")


class Numbers(Source):
    """Sequences of 3 to 9 numbers; a tag says whether a number is odd, or even and after an odd one."""

    def __init__(self, num_train: int = 96, num_eval: int = 25, vocabulary_size: int = 20) -> None:
        self.sizes: dict[Split, int] = {"train": num_train, "val": num_eval, "test": num_eval}
        self.vocabulary_size = vocabulary_size

    def facts(self) -> DataSpec:
        recipe = f"{self.sizes} {self.vocabulary_size}".encode()
        return DataSpec(
            num_train=self.sizes["train"],
            num_val=self.sizes["val"],
            num_test=self.sizes["test"],
            inputs={"numbers": TensorSpec((None,), "int64", ("time",))},
            targets=Classes(TAGS, shape=(None,)),
            fingerprint=hashlib.sha256(recipe).hexdigest(),
        )

    def problems(self) -> list[str]:
        return []

    def load(self, split: Split) -> list[dict[str, Tensor]]:
        rng = random.Random(split)
        sequences = [rng.choices(range(self.vocabulary_size), k=rng.randint(3, 9)) for _ in range(self.sizes[split])]
        return [sample(numbers) for numbers in sequences]

    def read(self, path: Path) -> dict[str, Tensor]:
        try:
            numbers = [int(word) for word in path.read_text(encoding="utf-8").split()]
        except (OSError, ValueError) as e:
            raise DataError(f"{path} cannot be read as numbers: {e}.") from e
        return {"numbers": sample(numbers)["numbers"]}

    def collate(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        from torch.nn.utils.rnn import pad_sequence

        fill = {"numbers": 0, "tags": -100}
        return {k: pad_sequence([s[k] for s in samples], batch_first=True, padding_value=fill[k]) for k in samples[0]}


def sample(numbers: list[int]) -> dict[str, Tensor]:
    """Numbers and their tags."""
    import torch

    tags = [1 if n % 2 else 2 if i and numbers[i - 1] % 2 else 0 for i, n in enumerate(numbers)]
    return {"numbers": torch.tensor(numbers), "tags": torch.tensor(tags)}


class Tagging(Task):
    """Cross entropy of each position; the share of positions and of whole sequences that are right."""

    def metrics(self) -> Mapping[str, Mode | None]:
        return {"loss": "min", "token_acc": "max", "errors": "min"}

    def model_arguments(self, data: DataSpec) -> dict[str, Any]:
        return {"num_tags": data.targets.num_outputs if data.targets else 0}

    def training_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(model(batch["numbers"]).flatten(0, 1), batch["tags"].flatten(), reduction="sum")
        return loss / len(batch["tags"])

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor]) -> Evaluated:
        from torch.nn.functional import cross_entropy

        outputs, tags = model(batch["numbers"]), batch["tags"]
        is_counted = tags != -100
        is_wrong = (outputs.argmax(-1) != tags) & is_counted
        loss = cross_entropy(outputs.flatten(0, 1), tags.flatten(), reduction="sum")
        return {
            "loss": Sum(loss, len(tags)),
            "token_acc": Sum((~is_wrong & is_counted).sum(), is_counted.sum()),
            "errors": Sum(is_wrong.any(-1).sum(), len(tags)),
        }

    def predict(self, model: nn.Module, inputs: Any) -> Sequence[Prediction]:
        tags = model(inputs["numbers"]).argmax(-1).tolist()
        return [Prediction([TAGS[tag] for tag in row]) for row in tags]

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"numbers": batch["numbers"]}
