"""Keys of `data` that a user's LightningDataModule does not leave to hpcexp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_module

CODE = """
import lightning.pytorch as pl


class Base(pl.LightningDataModule):
    def __init__(self, batch_size=32):
        super().__init__()


class Data(Base):
    def train_dataloader(self):
        return []
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.num_workers=2",), "data.num_workers=2: datamodule_a.Data makes its loaders itself"),
        (("data.loader=resident",), "takes no argument 'loader'"),
        (("data.eval_batch_size=9",), "takes no argument 'eval_batch_size'"),
        (("+data.batch_size=16",), "asks for batches of 64 on each rank"),
    ],
)
def test_what_a_data_module_does_itself_is_refused(
    hpcexp: Callable[..., Said], project: Path, overrides: tuple[str, ...], words: str
) -> None:
    """By its source, through what it inherits, before anything is imported."""
    write_module(project, "datamodule_a", CODE)
    own = ("data._target_=datamodule_a.Data", "~data.val_fraction", "data.global_batch_size=64", "tracking=off")
    assert 0 == hpcexp("plan", *own).status
    said = hpcexp("plan", *own, *overrides)
    assert 2 == said.status
    assert words in said.err
    assert "Fix: " in said.err
