"""Code that is written for `lightning`, trained beside pytorch_lightning, with and without that package installed."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import FAST, REPOSITORY, command, environment, only_run, write_conf, write_module

from hpcexp.runs.journal import read_points
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint

USED = """
from hpcexp.train.runtime.log_filters import import_lightning
import_lightning()
import pickle, sys
import pytorch_lightning, lightning_fabric
import lightning as L
import lightning.pytorch as pl
from lightning import Callback, Fabric, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.seed import seed_everything as seed
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers.csv_logs import CSVLogger
import lightning.pytorch.strategies.ddp
assert pl is pytorch_lightning and L.fabric is lightning_fabric and L.pytorch is pl
assert (LightningModule, LightningDataModule, Trainer, Callback) == (
    pl.LightningModule, pl.LightningDataModule, pl.Trainer, pl.Callback)
assert (Fabric, seed_everything, seed) == (lightning_fabric.Fabric, pl.seed_everything, pl.seed_everything)
assert CSVLogger is pytorch_lightning.loggers.CSVLogger and issubclass(EarlyStopping, pytorch_lightning.Callback)
assert L.pytorch.strategies.DDPStrategy is pytorch_lightning.strategies.DDPStrategy
assert L.__version__ == pytorch_lightning.__version__
assert sys.modules["lightning.pytorch.callbacks"].__spec__.name == "pytorch_lightning.callbacks"
assert pickle.loads(b"clightning.pytorch.callbacks\\nEarlyStopping\\n.") is EarlyStopping
try:
    import lightning.pytorch.nothing
except ModuleNotFoundError as e:
    print(e)
try:
    from lightning import nothing
except ImportError as e:
    print(e)
"""


def without_lightning(directory: Path) -> Path:
    """The installed packages but `lightning`."""
    directory.mkdir()
    for installed in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if installed.name != "lightning" and installed.suffix != ".pth":
            (directory / installed.name).symlink_to(installed)
    return directory


@pytest.mark.parametrize("is_installed", [True, False])
def test_both_names_are_the_same_modules(tmp_path: Path, *, is_installed: bool) -> None:
    """Whether or not `lightning` is installed; what it does not have is missing under both names."""
    site = [] if is_installed else ["-S"]
    path = str(REPOSITORY) if is_installed else f"{REPOSITORY}:{without_lightning(tmp_path / 'site')}"
    run = [sys.executable, *site, "-c", USED]
    env = environment(PYTHONPATH=path)
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    missing, unknown = done.stdout.splitlines()
    assert "No module named 'lightning.pytorch.nothing'" == missing
    assert "cannot import name 'nothing' from 'lightning'" in unknown


def test_a_second_copy_of_lightning_is_refused_by_name(project: Path) -> None:
    """Something that imports `lightning` when Python starts would make classes that are no LightningModules here."""
    write_module(project, "sitecustomize", "import lightning.pytorch")
    said = command("train", *FAST, cwd=project, PYTHONPATH=f"{project}:{REPOSITORY}")
    assert 2 == said.status
    assert "lightning.pytorch was imported before hpcexp started this job, from " in said.err
    assert "sitecustomize" in said.err


MINE = """
import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from pytorch_lightning.utilities import grad_norm


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))

    def training_step(self, batch, batch_idx) -> STEP_OUTPUT:
        return self.weight.sum()

    def on_before_optimizer_step(self, optimizer):
        self.log_dict(grad_norm(self, norm_type=2))

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.weight.mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Batches(L.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(12, 1), batch_size=4)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=4)


class Ending(Callback):
    @rank_zero_only
    def on_train_end(self, trainer, pl_module):
        print("at the end:", type(pl_module).__name__, flush=True)
"""


def test_a_project_written_for_lightning_trains_as_it_says(project: Path) -> None:
    """Its module with its own step and optimizer, its data module, its callback and one of `lightning.pytorch`."""
    write_module(project, "names_mine", MINE)
    files = {"model/mine.yaml": "_target_: names_mine.Net\n", "data/mine.yaml": "_target_: names_mine.Batches\n"}
    write_conf(project, files)
    given = ("model=mine", "data=mine", "trainer.monitor=val/weight")
    callbacks = (
        "callbacks.ending._target_=names_mine.Ending",
        "callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
        "trainer.mode=min",
    )
    said = command("train", *FAST, *given, *callbacks, cwd=project)
    assert 0 == said.status, said.err
    run = only_run(project)
    # Three steps of SGD on the sum: each weight falls by 0.5 a step.
    assert [-1.5] * 4 == read_checkpoint(run.last)["state_dict"]["weight"].tolist()
    assert "at the end: Net" in run.rank_log(0).read_text()
    assert 3 == json.loads(run.summary.read_text())["steps"]
    assert any(point.metrics.get("val/weight") == -1.5 for point in read_points(run.journal)[0])
