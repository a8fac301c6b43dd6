"""Projects as people have them, without a changed line: hpcexp trains them by one file of settings each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import REPOSITORY, Said, only_run

from hpcexp.rundir import RunDir
from hpcexp.runs.series import read_series

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(hpcexp: Callable[..., Said], project: Path) -> Callable[..., RunDir]:
    """The run of an example's experiment, in a copy of it."""

    def train(example: str, experiment: str, *more: str) -> RunDir:
        shutil.copytree(REPOSITORY / "examples" / example, project, dirs_exist_ok=True)
        said = hpcexp("train", f"experiment={experiment}", "tracking=off", "run.pictures=false", *more)
        assert 0 == said.status, said.err
        return only_run(project)

    return train


def test_loaders_and_a_module_of_a_training_script(trained: Callable[..., RunDir], hpcexp: Callable[..., Said]) -> None:
    """Clips of different lengths, padded by the script's own collate function; predicted and exported, too."""
    run = trained("wav_classifier", "tones")
    assert read_series(run.journal)["val/acc"].values[-1] > 0.9
    predicted = hpcexp("predict", "last", "--split", "val")
    assert 0 == predicted.status, predicted.err
    assert 40 == len(predicted.out.strip().splitlines()[1:])
    assert 0 == hpcexp("export", "last").status


def test_a_gpt_that_computes_its_own_loss(trained: Callable[..., RunDir]) -> None:
    """On plain data sets."""
    losses = read_series(trained("char_gpt", "gpt").journal)["val/loss"]
    assert losses.values[-1] < losses.values[0] < 3.5


def test_a_lightning_module_with_a_data_module(trained: Callable[..., RunDir]) -> None:
    """Batches are dictionaries; the module's own optimizer and schedule train it."""
    run = trained("time_series", "wave")
    assert read_series(run.journal)["val_loss"].values[-1] < 0.1


def test_a_gan_with_two_optimizers_and_no_validation(
    trained: Callable[..., RunDir], hpcexp: Callable[..., Said]
) -> None:
    """Both losses of every step; the last weights are the best, and that is said."""
    run = trained("gan", "circle")
    series = read_series(run.journal)
    assert 48 == len(series["g_loss"].values) == len(series["d_loss"].values)
    assert "the last weights, of epoch 3: no validation gave a number for" in hpcexp("show", "last").out


def test_a_project_by_the_common_template(trained: Callable[..., RunDir]) -> None:
    """Its own configs, a partial optimizer and schedule, torchmetrics, and its callbacks with their checkpoints."""
    run = trained("template_project", "spots", "hydra.searchpath=[file://configs]")
    series = read_series(run.journal)
    assert max(series["val/acc"].values) == series["val/acc_best"].values[-1] > 0.9
    assert {"last.ckpt"} < {path.name for path in (run.path / "own" / "checkpoints").iterdir()}
