"""What a data set gives against what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_plans import digits_plan

from hpcexp.data.source import Source, Tensors
from hpcexp.data_spec import Classes, DataSpec, TensorSpec
from hpcexp.errors import DataError
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.data.loaders import Shard


class Given(Source):
    """Says 64 samples of shape (1, 8, 8) a split, and gives `samples`."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def facts(self) -> DataSpec:
        return DataSpec(64, 64, 64, {"image": TensorSpec((1, 8, 8))}, Classes(tuple("0123456789")), "f")

    def problems(self) -> list[str]:
        return []

    def load(self, split: str) -> Any:
        return self.samples

    def read(self, path: Path) -> torch.Tensor:
        raise DataError("no files")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (Tensors(torch.zeros(10, 1, 8, 8), torch.zeros(10, dtype=torch.int64)), "10 samples, where facts() says 64"),
        (Tensors(torch.zeros(64, 1, 8, 8), torch.zeros(10, dtype=torch.int64)), "64 inputs and 10 targets"),
        (Tensors(torch.zeros(64, 32), torch.zeros(64, dtype=torch.int64)), "shape (32,), where facts() says (1, 8, 8)"),
        (None, "a NoneType"),
    ],
)
def test_data_that_contradicts_itself_is_not_trained_on(tmp_path: Path, samples: Any, words: str) -> None:
    """Its class and what it gives are named."""
    plan = digits_plan(tmp_path)
    assert plan.batch is not None
    data = SourceData(Given(samples), plan.batch, plan.settings, shard=Shard(), device=torch.device("cpu"))
    with pytest.raises(DataError, match=r"Given\.load") as raised:
        data.train_dataloader()
    assert words in str(raised.value)
