"""What best.ckpt holds where callbacks change the weights around a validation or at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fitting import trained
from torch import Tensor

from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint

SEEN: list[tuple[float, dict[str, Tensor]]] = []
"""Value and weights of each validation."""
TESTED: list[dict[str, Tensor]] = []


def weights_of(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Watch(pl.Callback):
    """Notes the weights while they are validated and tested."""

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        SEEN.append((0.0, weights_of(pl_module)))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        SEEN[-1] = (float(trainer.callback_metrics["val/loss"]), SEEN[-1][1])

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        TESTED.append(weights_of(pl_module))


class Noise(pl.Callback):
    """Validates with other weights than are trained, as tricks of users do, by hooks of its own choice."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.kept = weights_of(pl_module)
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(0.99)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.load_state_dict(self.kept)


CALLBACKS = {
    "EMA": {"_target_": "pytorch_lightning.callbacks.EMAWeightAveraging", "decay": 0.9},
    "SWA": {
        "_target_": "pytorch_lightning.callbacks.StochasticWeightAveraging",
        "swa_lrs": 0.01,
        "swa_epoch_start": 1,
    },
    "own": {"_target_": f"{__name__}.Noise"},
}


@pytest.mark.parametrize("kind", [*CALLBACKS, "ema_decay"])
def test_the_best_weights_are_those_that_were_validated_and_are_tested(tmp_path: Path, kind: str) -> None:
    """Bit for bit, of the validation with the best value."""
    SEEN.clear()
    TESTED.clear()
    callbacks = {"watch": {"_target_": f"{__name__}.Watch"}} | ({kind: CALLBACKS[kind]} if kind in CALLBACKS else {})
    others = {"trainer__ema_decay": 0.9} if kind == "ema_decay" else {}
    summary = trained(
        tmp_path,
        trainer__max_epochs=4,
        trainer__monitor="val/loss",
        trainer__mode="min",
        callbacks=callbacks,
        scheduler={},
        **others,
    )
    value, weights = min(SEEN, key=lambda seen: seen[0])
    best = read_checkpoint(RunDir(tmp_path).best)["state_dict"]
    assert summary["best"]["value"] == pytest.approx(value)
    assert all(torch.equal(weights[name], best[name]) for name in best)
    assert all(torch.equal(TESTED[0][name], best[name]) for name in best)


def test_weights_that_are_set_at_the_end_are_validated(tmp_path: Path) -> None:
    """SWA's average is a candidate for the best, and no weights that nobody looked at."""
    SEEN.clear()
    callbacks = {"swa": CALLBACKS["SWA"], "watch": {"_target_": f"{__name__}.Watch"}}
    trained(tmp_path, trainer__max_epochs=4, callbacks=callbacks, scheduler={})
    last = read_checkpoint(RunDir(tmp_path).last)["state_dict"]
    assert 5 == len(SEEN)
    assert all(torch.equal(SEEN[-1][1][name], last[name]) for name in last)
    assert not all(torch.equal(SEEN[-2][1][name], last[name]) for name in last)
