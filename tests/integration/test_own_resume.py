"""Users' modules, callbacks and data that are killed and resumed: as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_conf, write_module
from own_project import OWN, write_own_project
from test_resume import KILLER, result, run_in, values

from hpcexp.files.documents import read_plain

pytestmark = pytest.mark.slow

MODULES = '''
import pytorch_lightning as pl
import torch
from own import parts_of
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn


class Plain(pl.LightningModule):
    """Logs at every step what depends on the batch and on random numbers."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x):
        return self.head(self.backbone(x))

    def loss_of(self, batch):
        x, _ = parts_of(batch)
        return (self(x) - x.sum(-1, keepdim=True)).pow(2).mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.log("train/own", loss)
        self.log("train/count", float(self.trainer.datamodule.count))
        self.log("train/first", parts_of(batch)[1][0].float())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss_of(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss_of(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


class Gan(Plain):
    """Two optimizers, stepped by hand, one of them every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for number, optimizer in enumerate(self.optimizers()):
            if number and batch_idx % 2:
                continue
            self.toggle_optimizer(optimizer)
            loss = self.loss_of(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log(f"train/loss_{number}", loss)

    def configure_optimizers(self):
        parts = (self.backbone, self.head)
        return [torch.optim.Adam(part.parameters(), lr=0.02) for part in parts], []


class Unfreezing(Plain):
    """Freezes its backbone, and trains it from the second epoch on by a group of its own."""

    def __init__(self):
        super().__init__()
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self):
        self.backbone.train(self.current_epoch > 0)
        if self.current_epoch == 1:
            self.backbone.requires_grad_(True)
            self.optimizers().optimizer.add_param_group({"params": self.backbone.parameters(), "lr": 0.001})
'''

CONF = {
    "model/plain.yaml": "_target_: modules.Plain\n",
    "model/gan.yaml": "_target_: modules.Gan\n",
    "model/unfreezing.yaml": "_target_: modules.Unfreezing\n",
}
KINDS = {
    "own module": ("model=plain",),
    "two optimizers": ("model=gan",),
    "unfreezing": ("model=unfreezing",),
    "BackboneFinetuning": (
        "model=plain",
        "+callbacks.finetuning._target_=pytorch_lightning.callbacks.BackboneFinetuning",
        "+callbacks.finetuning.unfreeze_backbone_at_epoch=1",
    ),
    "two ranks, unfreezing": ("model=unfreezing", "hardware.devices=2"),
    "SWA": (
        "model=plain",
        "+callbacks.swa._target_=pytorch_lightning.callbacks.StochasticWeightAveraging",
        "+callbacks.swa.swa_lrs=0.01",
        "+callbacks.swa.swa_epoch_start=1",
        "+callbacks.swa.annealing_epochs=2",
    ),
    "EMA": (
        "model=plain",
        "+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging",
        "+callbacks.ema.decay=0.8",
    ),
    "dict batches, workers": ("model=plain", "data.kind=dict", "+data.num_workers=2"),
    "stream": ("model=plain", "data.kind=stream"),
    "stream with state, workers": ("model=plain", "data.kind=stateful", "+data.num_workers=2"),
    "two ranks, stream": ("model=plain", "data.kind=stream", "hardware.devices=2"),
    "Hugging Face, stream": ("model=plain", "data.kind=hf_stream"),
}
"""Three epochs of six or seven batches."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project, with the killer."""
    project = tmp_path_factory.mktemp("own_resume")
    write_own_project(project)
    write_module(project, "modules", MODULES)
    # By batches: steps of several optimizers are not those of the journal.
    write_module(project, "killer", KILLER.replace("trainer.global_step ==", "trainer.fit_loop.total_batch_idx + 1 =="))
    write_conf(project, CONF)
    return project


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_is_the_same_to_the_bit(
    shared: Path, tmp_path: Path, train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Weights, tests, best checkpoint; every value of the journal once: after SIGTERM and SIGKILL in mid-epoch."""
    if "Face" in kind:
        pytest.importorskip("datasets")
    monkeypatch.chdir(shared)

    def call(kills: str, root: str) -> Said:
        monkeypatch.setenv("KILLS", kills)
        every = ("checkpoint.every_s=null", "checkpoint.every_steps=2", "+callbacks.killer._target_=killer.Killer")
        return train(*OWN, "trainer.max_epochs=3", *KINDS[kind], *every, f"run.root={tmp_path / root}")

    assert 0 == call("", "whole").status
    kills = ["4 SIGTERM 0", "9 SIGKILL 0"]
    for number in range(len(kills)):
        said = call(",".join(kills), "runs")
        assert (143 if "SIGTERM" in kills[number] else 1) == said.status, said
    last = call(",".join(kills), "runs")
    assert 0 == last.status, last.err
    run, uninterrupted = run_in(tmp_path / "runs"), run_in(tmp_path / "whole")
    assert len(kills) + 1 == read_plain(run.status)["attempt"]
    assert values(uninterrupted) == values(run)
    assert result(uninterrupted) == result(run)
