"""Trainings that end by steps, tokens and time, in one attempt and in several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_recording import Base, Gan, Keeps, Later, run, series
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hpcexp.errors import ConfigError
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.engine.ending import num_tokens
from hpcexp.train.engine.interrupts import Interrupted


def test_max_steps_counts_batches_whatever_is_stepped_on_them(tmp_path: Path) -> None:
    """A module with two optimizers, one of them stepped twice, ends at the same step; its end is validated."""
    for module in (Base, Gan):
        place = tmp_path / module.__name__
        assert 25 == run(place, module, trainer__max_steps=25, trainer__max_epochs=9)["steps"]
        assert list(range(1, 26)) == [step for step, _ in series(place, "train/loss")]
        assert 25 == series(place, "val/own")[-1][0]


class Lengths(Base):
    """Records the length that a user's own schedule gets."""

    def configure_optimizers(self) -> Any:
        self.told = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


def test_users_schedules_are_told_the_length(tmp_path: Path) -> None:
    """By Lightning's `estimated_stepping_batches`."""
    run(tmp_path, Lengths, trainer__max_steps=25, trainer__max_epochs=9)
    assert 25 == Keeps.module.told


class Stream(IterableDataset[Any]):
    """Batches without an end."""

    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(1, 8, 8), torch.tensor(0)


class Streaming(pl.LightningDataModule):
    """A data module over a stream that nobody knows the length of."""

    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)), batch_size=4)


class Configured(Base):
    """Leaves the optimizer to the configuration."""

    configure_optimizers = pl.LightningModule.configure_optimizers


ENDLESS = {"data": {"_target_": f"{__name__}.Streaming"}, "trainer__val_every_epochs": 1}


def configured(directory: Path, **overrides: Any) -> dict[str, Any]:
    model = {"_target_": f"{__name__}.Configured"}
    return run(directory, Configured, model=model, **ENDLESS, **overrides)


def test_a_schedule_over_a_stream_needs_max_steps(tmp_path: Path) -> None:
    """Its rate would be 0 from the second step on; with a length it is what it should be."""
    with pytest.raises(ConfigError, match=r"needs the number of steps(.|\n)*trainer\.max_steps=10000"):
        configured(tmp_path / "unknown")
    assert [] == series(tmp_path / "unknown", "train/loss")
    configured(tmp_path / "known", trainer__max_steps=10)
    rates = [rate for _, rate in series(tmp_path / "known", "train/lr")]
    assert 10 == len(rates)
    assert min(rates) > 0
    assert 0.003 == pytest.approx(max(rates), rel=0.2)


class Tokens(Base):
    """Reads the digits as 64 tokens each, in batches of 64."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.left = batch

    def num_tokens(self, batch: Any) -> int:
        return int(batch[0].numel())


def test_a_duration_in_tokens_ends_at_the_step_that_reaches_it(tmp_path: Path) -> None:
    """Counted over all attempts."""
    tokens = {"trainer__max_duration": f"{30 * 64 * 64 - 5}tok", "trainer__max_epochs": None}
    assert 30 == run(tmp_path / "whole", Tokens, **tokens)["steps"]
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", Tokens, Later(11), **tokens)
    assert 30 == run(tmp_path / "parts", Tokens, **tokens)["steps"]
    assert series(tmp_path / "whole", "train/loss") == series(tmp_path / "parts", "train/loss")


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": torch.zeros(2, 8, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}, 16),
        ({"input_ids": torch.zeros(2, 8, dtype=torch.long), "attention_mask": torch.tensor([[1, 1], [1, 0]])}, 3),
        ((torch.zeros(3, 5), torch.zeros(3, 7, dtype=torch.int32)), 21),
    ],
)
def test_tokens_are_found_in_batches(batch: Any, expected: int) -> None:
    """By their mask, or as the first tensor of token numbers."""
    assert expected == num_tokens(batch)


def test_a_batch_without_tokens_says_what_to_do() -> None:
    """Labels are no tokens, and neither are pictures."""
    with pytest.raises(ConfigError, match="num_tokens"):
        num_tokens((torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)))


class Clocked(Base):
    """Turns the clock of the process on by a minute a batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        CLOCK[0] += 60.0


CLOCK = [0.0]


def test_a_duration_in_time_is_that_of_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run trains for what is left."""
    monkeypatch.setattr("hpcexp.train.engine.ending.monotonic", lambda: CLOCK[0])
    hour = {"trainer__max_duration": "0.5h", "trainer__max_epochs": None, "checkpoint__every_s": None}
    assert 30 == run(tmp_path / "whole", Clocked, **hour)["steps"]
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", Clocked, Later(11), **hour)
    assert 12 * 60.0 == read_checkpoint(RunDir(tmp_path / "parts").last)["callbacks"]["Ending"]["trained_s"]
    CLOCK[0] += 10_000.0
    assert 30 == run(tmp_path / "parts", Clocked, **hour)["steps"]
