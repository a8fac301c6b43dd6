"""Sweeps in stages: one after the other, the later ones from the best run of an earlier one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Said, write_conf, write_module

from hpcexp.rundir import SweepDir, find_runs

STARTED = """
from pathlib import Path

import torch

from hpcexp.models.mlp import MLP


class Started(MLP):
    '''An MLP that begins with the best weights of a run.'''

    def __init__(self, in_shape, num_classes, start=None):
        super().__init__(in_shape, num_classes, hidden=[8])
        if start is not None:
            state = torch.load(Path(start, 'checkpoints', 'best.ckpt'), weights_only=True)['state_dict']
            self.load_state_dict({name.removeprefix('model.'): value for name, value in state.items()})
"""
FILE = """
question: Does a start from trained weights help?
base: [model=started, trainer.limit_train_batches=2, tracking=off, run.pictures=false]
stages:
  pretrain:
    base: [trainer.max_epochs=2]
    axes: {optimizer.lr: [0.01, 1.0e-9]}
  finetune:
    base: [trainer.max_epochs=1, optimizer.lr=1e-12, 'model.start=${best:pretrain}']
    seeds: [5]
"""


@pytest.fixture
def staged(project: Path) -> Path:
    write_module(project, "started", STARTED)
    write_conf(project, {"model/started.yaml": "_target_: started.Started\nstart: null\n"})
    (project / "sweeps").mkdir()
    (project / "sweeps" / "study.yaml").write_text(FILE)
    return project


def stage(project: Path, name: str) -> SweepDir:
    return SweepDir(project / "runs" / "sweeps" / f"study.{name}")


def runs_of(project: Path, name: str) -> list[Path]:
    lines = stage(project, name).jobs.read_text().splitlines()
    return [project / "runs" / json.loads(line)["run"] for line in lines]


def weights(run: Path) -> torch.Tensor:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


@pytest.mark.slow
def test_a_stage_begins_where_the_best_run_of_the_one_before_ended(hpcexp: Callable[..., Said], staged: Path) -> None:
    """A second time nothing runs again; a stage that lost its jobs runs them, and only them."""
    assert hpcexp("sweep", "study").status == 0
    best = Path(json.loads(stage(staged, "pretrain").best.read_text())["run"])
    assert best in runs_of(staged, "pretrain")
    [finetuned] = runs_of(staged, "finetune")
    torch.testing.assert_close(weights(finetuned), weights(best), rtol=0, atol=1e-6)
    other = next(run for run in runs_of(staged, "pretrain") if run != best)
    assert not torch.allclose(weights(finetuned), weights(other), rtol=0, atol=1e-6)

    again = hpcexp("sweep", "study")
    assert (again.status, again.out.count("nothing to do")) == (0, 2)
    assert len(list(find_runs(staged / "runs"))) == 3
    status = hpcexp("sweep", "study", "--status")
    assert status.status == 0
    assert "2 jobs: 2 finished" in status.out
    assert "1 job: 1 finished" in status.out


@pytest.mark.slow
def test_a_stage_does_not_start_where_the_one_before_failed(hpcexp: Callable[..., Said], staged: Path) -> None:
    """And the command says so."""
    write_module(staged, "started", STARTED + "    def forward(self, x):\n        raise ValueError('no')\n")
    said = hpcexp("sweep", "study")
    assert said.status == 1
    assert "Stage pretrain did not finish, so the next does not start." in said.err
    assert not stage(staged, "finetune").path.exists()


def test_the_mistakes_of_all_stages_are_reported_before_the_first_starts(
    hpcexp: Callable[..., Said], staged: Path
) -> None:
    """Nothing is made."""
    file = staged / "sweeps" / "study.yaml"
    file.write_text(FILE.replace("0.01, 1.0e-9", "-1").replace("optimizer.lr=1e-12", "trainer.max_epoch=1"))
    said = hpcexp("sweep", "study")
    assert said.status == 2
    assert "Stage pretrain: " in said.err
    assert "Stage finetune: " in said.err
    assert "max_epochs" in said.err
    assert not (staged / "runs").exists()


@pytest.mark.parametrize(
    ("edit", "override", "sentence"),
    [
        (("best:pretrain", "best:pretrian"), "", "no earlier stage has this name.\nFix: Did you mean 'pretrain'?"),
        (("  finetune:", "  fine tune:"), "", "stages.fine tune: a name has letters"),
        (("    base: [trainer.max_epochs=2]", "    base: seed=1"), "", "stages.pretrain.base: a list of overrides."),
        (("base: [model=started", "base: x\nignored: [model=started"), "", "base: a list of overrides."),
        (("    seeds: [5]", "    1: 2"), "", "'1'"),
        (("    seeds: [5]", "    stages: {a: {}}"), "", "stages.finetune.stages: a stage has no stages."),
        (("", ""), "seeds=2", "seeds: stage finetune of study.yaml sets it itself.\nFix: stages.finetune.seeds=…"),
        (
            ("", ""),
            "stages.tune.seeds=2",
            "stages.tune.seeds: a key of one of the stages of study.yaml: finetune, pretrain.",
        ),
    ],
)
def test_what_is_wrong_with_stages_is_said(
    hpcexp: Callable[..., Said], staged: Path, edit: tuple[str, str], override: str, sentence: str
) -> None:
    """With what to do."""
    (staged / "sweeps" / "study.yaml").write_text(FILE.replace(*edit))
    said = hpcexp("sweep", "study", "--plan", *filter(None, [override]))
    assert said.status == 2
    assert sentence in said.err


def test_a_plan_lists_the_jobs_of_all_stages(hpcexp: Callable[..., Said], staged: Path) -> None:
    """And says which depend on a run that is not known yet; an override of one stage changes that one."""
    said = hpcexp("sweep", "study", "--plan", "stages.finetune.seeds=3")
    assert said.status == 0
    assert "study.pretrain: Does a start" in said.out
    assert "3 jobs: 3 runs" in said.out
    assert "These jobs lack the best run of pretrain" in said.out
