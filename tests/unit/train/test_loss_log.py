"""Losses of steps on their way to the journal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcexp.runs.journal import Journal, read_points
from hpcexp.train.tasks.loss_log import LossLog


@pytest.mark.parametrize("every", [1, 2, 10])
def test_values_do_not_depend_on_how_many_are_written_at_once(tmp_path: Path, every: int) -> None:
    """In float32, also of a float64 model; steps count from where training goes on; batches of one are averaged."""
    losses = LossLog(Journal(tmp_path / "metrics.jsonl"), every)
    losses.begin(7, world_size=1)
    for batches in ([0.1], [0.2, 0.4], [float("nan")]):
        for number, batch in enumerate(batches):
            assert number == losses.num_micro
            losses.add(torch.tensor(batch, dtype=torch.float64))
        assert losses.diverged is False
        losses.end_step(0.5)
    losses.flush()
    points, _ = read_points(tmp_path / "metrics.jsonl")
    assert [8, 9, 10] == [point.step for point in points]
    assert [torch.tensor(x).item() for x in (0.1, 0.3)] == [point.metrics["train/loss"] for point in points[:2]]
    assert {0.5} == {point.metrics["train/lr"] for point in points}
    assert losses.diverged
    assert 3 == len(losses.since_validation)
