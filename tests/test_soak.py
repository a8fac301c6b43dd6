"""A hundred kills: every strategy and loader, over three epochs and more, by the drill itself. `pytest -m soak`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ended, start

pytestmark = [pytest.mark.slow, pytest.mark.soak]

ONE: tuple[str, ...] = ()
TWO = ("hardware=cpu", "hardware.devices=2", "strategy=ddp")
RESIDENT = ("data.loader=resident",)
MAP = ("data.loader=map", "data.num_workers=2")
MLP = ("trainer.max_epochs=4", "trainer.limit_train_batches=12", "model.dropout=0.1")
CNN = ("experiment=digits_cnn", "trainer.max_epochs=3", "trainer.limit_train_batches=14")
STATEFUL = ("trainer.ema_decay=0.9", "trainer.accumulate_grad_batches=2", "scheduler=plateau")
TIMEOUT_S = 1800


@pytest.fixture(autouse=True)
def _only_when_asked_for(request: pytest.FixtureRequest) -> None:
    """`-m slow` alone does not mean this hour."""
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("takes an hour: pytest -m soak")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("log_every", [1, 4])
@pytest.mark.parametrize("loader", [RESIDENT, MAP], ids=["resident", "map"])
@pytest.mark.parametrize("ranks", [ONE, TWO], ids=["one", "two"])
def test_no_kill_leaves_a_trace(
    tmp_path: Path, ranks: tuple[str, ...], loader: tuple[str, ...], log_every: int, seed: int
) -> None:
    """Seven kills each, 112 in all; one of the sixteen is also held against MLflow."""
    experiment = (*CNN, *STATEFUL) if seed == 2 else MLP
    tracking = [] if (ranks, loader, log_every, seed) == (ONE, MAP, 4, 1) else ["tracking=off"]
    asked = [*experiment, *ranks, *loader, f"trainer.log_every_n_steps={log_every}", *tracking]
    settings = ["drill.kills=7", f"drill.seed={seed * 100 + log_every}"]
    said = ended(start("drill", "preempt", *asked, *settings, cwd=tmp_path), TIMEOUT_S)
    assert 0 == said.status, f"hpcexp drill preempt {' '.join([*asked, *settings])}\n{said.out}\n{said.err}"
    assert "The same to the bit after 7 kills." in said.out
