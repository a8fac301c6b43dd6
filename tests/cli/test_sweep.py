"""Running sweeps: jobs side by side, counted once, resumed after anything that can happen to their driver."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import command, start
from helpers import Said, ended, wait_until, write_conf, write_module
from record_support import query

from hpcexp.files.documents import read_plain
from hpcexp.rundir import SweepDir, find_runs
from hpcexp.sweep.store.directory import find_sweeps

pytestmark = pytest.mark.slow

SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=off", "run.pictures=false")
"""Jobs of a tenth of a second."""

PACED = """
import os, time
from pathlib import Path
from hpcexp.models.mlp import MLP

class Paced(MLP):
    '''Waits in its steps for a file `gates/GATE`, and fails, as its arguments say.'''
    def __init__(self, in_shape, num_classes, gate=None, fails=False):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.gate, self.fails = gate, fails

    def forward(self, x):
        while self.training and self.gate and not Path("gates", str(self.gate)).exists():
            time.sleep(0.01)
        if self.training and self.fails:
            raise ValueError("as it was told")
        return super().forward(x)
"""


@pytest.fixture
def paced(project: Path) -> Path:
    """A project with a model that waits or fails."""
    write_module(project, "paced", PACED)
    write_conf(project, {"model/paced.yaml": "_target_: paced.Paced\ngate: null\nfails: false\n"})
    (project / "gates").mkdir()
    return project


def opened(project: Path, *gates: int) -> None:
    for gate in gates:
        (project / "gates" / str(gate)).touch()


def only_sweep(project: Path) -> SweepDir:
    [place] = find_sweeps(project / "runs")
    return place


def numbers(place: SweepDir) -> dict[str, int]:
    """Run directory → number of its job."""
    lines = [json.loads(line) for line in (place.path / "jobs.jsonl").read_text().splitlines()]
    return {line["run"]: line["job"] for line in lines}


def states(project: Path) -> list[str]:
    return sorted(read_plain(run.status).get("state", "planned") for run in find_runs(project / "runs"))


def begun(said: Said) -> int:
    """How many jobs a command has started."""
    return sum(bool(re.fullmatch(r"\[\d+(/\d+)?\] digits_mlp/.*", line)) for line in said.out.splitlines())


@contextmanager
def driving(project: Path, *argv: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A driver in a process of its own."""
    driver = start(*argv, cwd=project, **env)
    try:
        yield driver
    finally:
        driver.kill()
        ended(driver)


def test_a_killed_driver_costs_nothing(paced: Path) -> None:
    """After three of eight jobs it is killed; the same command runs exactly the other five, under their numbers.

    MLflow has one parent and eight children of it.
    """
    asked = (
        "train",
        "-m",
        "model=paced",
        "model.gate=1,2,3,4,5,6,7,8",
        *SHORT,
        "tracking=mlflow",
        "tracking.wait_s=300",
    )
    opened(paced, 1, 2, 3)
    with driving(paced, *asked) as driver:
        wait_until(lambda: states(paced).count("finished") == 3 or driver.poll() is not None, "three jobs")
        driver.send_signal(signal.SIGKILL)
        ended(driver)
    before = numbers(only_sweep(paced))
    opened(paced, 4, 5, 6, 7, 8)
    said = command(*asked, cwd=paced)
    assert 0 == said.status, said
    assert 5 == begun(said)
    assert ["finished"] * 8 == states(paced)
    assert before == numbers(only_sweep(paced))
    assert "8 jobs: 8 finished" in said.out
    tags = "SELECT value, count(*) FROM tags WHERE key = 'mlflow.parentRunId' GROUP BY value"
    [(parent, children)] = query(paced / "runs" / "mlflow.db", tags)
    assert 8 == children
    named = "SELECT name, status FROM runs WHERE run_uuid = ?"
    assert [(only_sweep(paced).path.name, "FINISHED")] == query(paced / "runs" / "mlflow.db", named, parent)
    assert [(9,)] == query(paced / "runs" / "mlflow.db", "SELECT count(*) FROM runs")


def test_what_is_done_is_not_done_again(hpcexp: Callable[..., Said], project: Path) -> None:
    """The same command says so; another order of the values is the same sweep."""
    assert 0 == hpcexp("train", "-m", "seed=1,2", *SHORT).status
    again = hpcexp("train", "-m", "seed=1,2", *SHORT)
    assert (0, 0) == (again.status, begun(again))
    assert "nothing to do" in again.out
    assert "2 jobs: 2 finished" in again.out


def test_a_project_that_was_moved_goes_on_with_its_sweeps(project: Path) -> None:
    """It finds there what it has run before; a copy beside the first one is another project's."""
    first, moved = project / "first", project / "moved"
    first.mkdir()
    asked = ("train", "-m", "seed=1,2", *SHORT)
    assert 0 == command(*asked, cwd=first).status
    first.rename(moved)
    again = command(*asked, cwd=moved)
    assert (0, 0) == (again.status, begun(again)), again
    assert 2 == len(numbers(only_sweep(moved)))
    shutil.copytree(moved, first)
    copied = command(*asked, cwd=first)
    assert 2 == copied.status
    assert f"holds a sweep of the project {moved}, and this is {first}" in copied.err


def test_two_drivers_run_no_job_twice(paced: Path) -> None:
    """They share the jobs, and both tell of all."""
    asked = ("train", "-m", "model=paced", f"model.gate={','.join(map(str, range(1, 9)))}", *SHORT)
    with driving(paced, *asked, "launch.max_jobs=1") as first:
        wait_until(lambda: states(paced).count("running") == 1, "a job of the first")
        with driving(paced, *asked, "launch.max_jobs=1") as second:
            wait_until(lambda: states(paced).count("running") == 2, "a job of the second")
            opened(paced, *range(1, 9))
            told = [ended(first), ended(second)]
    assert [0, 0] == [said.status for said in told], told
    assert 8 == sum(map(begun, told))
    assert [1] * 8 == [read_plain(run.status)["attempt"] for run in find_runs(paced / "runs")]
    assert all("8 jobs: 8 finished" in said.out for said in told)
    assert "Working together with" in told[1].out
    assert "finished" == read_plain(only_sweep(paced).status)["state"]


def test_jobs_of_all_widths_find_their_devices(hpcexp: Callable[..., Said], project: Path) -> None:
    """One and two ranks in one sweep, on two cores."""
    said = hpcexp("train", "-m", "seed=1,2", "hardware.devices=1,2", "hardware=cpu", *SHORT)
    assert 0 == said.status, said
    worlds = sorted(read_plain(run.summary)["world_size"] for run in find_runs(project / "runs"))
    assert [1, 1, 2, 2] == worlds


def test_a_failed_job_is_told_and_not_tried_again(hpcexp: Callable[..., Said], paced: Path) -> None:
    """Only when asked to; the others run all the same."""
    asked = ("train", "-m", "model=paced", "model.fails=true,false", "seed=1,2", *SHORT)
    said = hpcexp(*asked)
    assert 1 == said.status
    assert ["failed", "failed", "finished", "finished"] == states(paced)
    assert "as it was told" in said.out
    again = hpcexp(*asked)
    assert (1, 0) == (again.status, begun(again))
    assert "--retry-failed" in again.out
    assert 2 == begun(hpcexp(*asked, "--retry-failed"))


def test_a_failure_stops_the_others_where_that_is_wished(hpcexp: Callable[..., Said], paced: Path) -> None:
    """What has not begun does not begin."""
    asked = ("model=paced", "model.fails=true,false", "seed=1,2", "launch.max_jobs=1", *SHORT)
    said = hpcexp("train", "-m", *asked, "--fail-fast")
    assert 1 == said.status
    assert ["failed"] == states(paced)
    assert "3 not run" in said.out
    again = hpcexp("train", "-m", *asked, "--fail-fast")
    assert (1, 0) == (again.status, begun(again))
    assert "1 failed before" in again.out
    assert "failed" == read_plain(only_sweep(paced).status)["state"]


def test_a_question_that_a_study_refuses_is_not_kept(hpcexp: Callable[..., Said], project: Path) -> None:
    """The next command asks what was asked before."""
    pytest.importorskip("optuna", reason="Optuna is not installed (hpcexp[optuna])")
    (project / "sweeps").mkdir()
    (project / "sweeps" / "mine.yaml").write_text(
        f"question: Q\nbase: [{', '.join(SHORT)}]\naxes: {{optimizer.lr: {{low: 0.01, high: 0.1}}}}\n"
        "search: {sampler: random}\nbudget: {trials: 1}\n"
    )
    assert 0 == hpcexp("sweep", "mine").status
    before = only_sweep(project).definition.read_text()
    said = hpcexp("sweep", "mine", "optimizer.lr=0.01,0.02")
    assert 2 == said.status
    assert "was begun with another space" in said.err
    assert json.loads(before) == read_plain(only_sweep(project).definition)
    assert "edited" not in hpcexp("sweep", "mine").out


@pytest.mark.parametrize("name", ["../evil", "a b", ".hidden"])
def test_a_name_that_is_no_directory_of_a_sweep_is_refused(hpcexp: Callable[..., Said], name: str) -> None:
    said = hpcexp("sweep", "digits_lr_width", "--as", name)
    assert 2 == said.status
    assert f"--as {name}: a name has letters" in said.err


def test_edited_code_is_said(hpcexp: Callable[..., Said], paced: Path) -> None:
    """Its jobs run anew, under their numbers."""
    asked = ("train", "-m", "model=paced", "seed=1,2", *SHORT)
    assert 0 == hpcexp(*asked).status
    write_module(paced, "paced", PACED + "\n# edited")
    again = hpcexp(*asked)
    assert "2 jobs have changed since the last run" in again.out
    assert 2 == begun(again)
    assert 4 == len(list(find_runs(paced / "runs")))


def test_a_sweep_is_cancelled_from_elsewhere_and_goes_on(project: Path) -> None:
    """What runs writes a checkpoint, from which the same command continues."""
    asked = ("train", "-m", "seed=1,2", "trainer.max_epochs=1000000", "tracking=off", "trainer.log_every_n_steps=1")
    with driving(project, *asked, "launch.max_jobs=1") as driver:
        wait_until(lambda: any(run.journal.exists() for run in find_runs(project / "runs")), "a step")
        name = only_sweep(project).path.name
        status = command("sweep", name, "--status", cwd=project)
        assert "1 running, 1 waiting" in status.out
        assert f"process {driver.pid} on" in status.out
        assert 0 == command("sweep", name, "--cancel", cwd=project).status
        said = ended(driver)
    assert 1 == said.status
    assert "stopped: cancelled" in said.out
    assert ["killed"] == states(project)
    with driving(project, *asked, "launch.max_jobs=1") as driver:
        wait_until(
            lambda: 2 in [read_plain(run.status).get("attempt") for run in find_runs(project / "runs")], "it goes on"
        )
        driver.send_signal(signal.SIGINT)
        assert 130 == ended(driver).status


def test_an_edited_sweep_says_what_is_new_and_what_is_not_asked_any_more(
    hpcexp: Callable[..., Said], project: Path
) -> None:
    """Numbers stay; results of before stay in their runs."""
    (project / "sweeps").mkdir()
    file = project / "sweeps" / "mine.yaml"
    text = f"question: Q\nbase: [{', '.join(SHORT)}]\naxes: {{seed: [1, 2]}}\n"
    file.write_text(text)
    assert 0 == hpcexp("sweep", "mine").status
    file.write_text(text.replace("[1, 2]", "[2, 3]"))
    said = hpcexp("sweep", "mine")
    assert 0 == said.status
    assert "axis seed: 1,2 → 2,3" in said.out
    assert 1 == begun(said)
    assert "1 jobs of before are not asked for any more" in said.out
    assert [1, 2, 3] == sorted(numbers(only_sweep(project)).values())
    status = hpcexp("sweep", "mine", "--status")
    assert "2 jobs: 2 finished" in status.out


def test_a_used_up_budget_ends_a_sweep(hpcexp: Callable[..., Said], project: Path) -> None:
    """The rest is shown as not run, and that is no failure."""
    (project / "sweeps").mkdir()
    text = f"question: Q\nbase: [{', '.join(SHORT)}, launch.max_jobs=1]\nseeds: 3\nbudget: {{core_hours: 1.0e-9}}\n"
    (project / "sweeps" / "mine.yaml").write_text(text)
    said = hpcexp("sweep", "mine")
    assert 0 == said.status, said
    assert "budget.core_hours=1e-09 is used up" in said.out
    assert "not run" in said.out


def test_the_answer_is_a_ranking_over_seeds(hpcexp: Callable[..., Said], project: Path) -> None:
    """Also as CSV, a job a line, and as Markdown."""
    said = hpcexp("train", "-m", "optimizer.lr=0.0001,0.01", "seed=1,2,3", *SHORT)
    assert 0 == said.status
    place = only_sweep(project)
    rows = list(csv.DictReader(place.table_csv.read_text().splitlines()))
    assert ["1", "2", "3", "4", "5", "6"] == [row["job"] for row in rows]
    assert {"finished"} == {row["state"] for row in rows}
    means = {
        lr: sum(float(row["val/acc"]) for row in rows if row["optimizer.lr"] == lr) / 3 for lr in ("0.0001", "0.01")
    }
    best = max(means, key=lambda lr: means[lr])
    assert {"optimizer.lr": best} == read_plain(place.best)["params"]
    assert means[best] == pytest.approx(read_plain(place.best)["metrics"]["val/acc"])
    assert f"best: optimizer.lr={best}  val/acc {means[best]:.4g} ± " in said.out
    assert place.table_md.read_text().splitlines()[2].startswith(f"| 1 | {best} | ")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["optimizer.lr=0.1,-1", "seed=1,2"], ["optimizer.lr=-1 is out of range", "optimizer.lr=-1"]),
        (["optimizer.rl=0.1,0.2"], ["in all 2 jobs", "takes no argument 'rl'"]),
        (["trainer.max_epoch=1,2"], ["there is no key 'max_epoch'", "'max_epochs'"]),
        (["model=mlp,cmn"], ["model has no option 'cmn'", "'cnn'"]),
        (["trainer.max_epochs=interval(1,2)"], ["an interval has no end of values", "hydra/sweeper=optuna"]),
    ],
)
def test_a_mistake_on_an_axis_starts_nothing(
    hpcexp: Callable[..., Said], project: Path, asked: list[str], told: list[str]
) -> None:
    """It is named, with the jobs that have it."""
    said = hpcexp("train", "-m", *asked, *SHORT)
    assert 2 == said.status
    for part in told:
        assert part in said.err
    assert not (project / "runs").exists()


def test_a_wrong_argument_of_a_target_is_found_before_the_first_job(hpcexp: Callable[..., Said], paced: Path) -> None:
    """By the real signature, in a worker: the source alone does not tell what the name stands for."""
    write_module(
        paced,
        "wrapped",
        """
        from paced import Paced

        def build(in_shape, num_classes, gate: int = 0, fails=False):
            return Paced(in_shape, num_classes)

        make = {"it": build}["it"]
        """,
    )
    said = hpcexp("train", "-m", "model=paced", "model._target_=wrapped.make", "model.gate=1,two", *SHORT)
    assert 2 == said.status, said
    assert "model.gate" in said.err
    assert not (paced / "runs").exists()


def test_a_directory_of_something_else_is_left_alone(hpcexp: Callable[..., Said], project: Path) -> None:
    """Its files are not a sweep's."""
    (project / "sweeps").mkdir()
    (project / "sweeps" / "mine.yaml").write_text(f"question: Q\nbase: [{', '.join(SHORT)}]\nseeds: 2\n")
    other = project / "runs" / "sweeps" / "mine"
    other.mkdir(parents=True)
    (other / "thesis.tex").write_text("years of work")
    said = hpcexp("sweep", "mine")
    assert 2 == said.status
    assert "holds no sweep" in said.err
    assert ["thesis.tex"] == [file.name for file in other.iterdir()]


OWN = """
import pytorch_lightning as pl
from torch import nn

class Own(pl.LightningModule):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean())
"""


def test_a_sweep_that_cannot_be_ranked_stops_after_its_first_job(project: Path) -> None:
    """Planning does not know what a LightningModule of the user's logs; the first job's journal does."""
    write_module(project, "own_ranked", OWN)
    write_conf(project, {"model/own.yaml": "_target_: own_ranked.Own\n"})
    (project / "sweeps").mkdir()
    file = "question: Which?\nbase: [model=own, {}]\naxes: {{seed: [1, 2, 3]}}\nmetric: val/f2\nmode: max\n"
    (project / "sweeps" / "mine.yaml").write_text(file.format(", ".join((*SHORT, "launch.max_jobs=1"))))
    said = command("sweep", "mine", cwd=project)
    assert 2 == said.status, said
    assert "stopped: val/f2 is not recorded, only " in said.out
    assert "val/acc" in said.out
    assert ["finished"] == states(project)


def test_what_is_damaged_in_a_sweep_is_named_and_mended(hpcexp: Callable[..., Said], project: Path) -> None:
    """Its question can be taken away; of its jobs those whose lines are lost get the same numbers again."""
    asked = ("train", "-m", "seed=1,2,3", *SHORT)
    assert 0 == hpcexp(*asked).status
    place, before = only_sweep(project), numbers(only_sweep(project))
    place.jobs.write_text(place.jobs.read_text()[: -len(place.jobs.read_text()) // 2])
    place.definition.write_text("{")
    for command_line in (asked, ("sweep", "last", "--status")):
        said = hpcexp(*command_line)
        assert 2 == said.status
        assert f"{place.definition} is damaged" in said.err
    place.definition.unlink()
    assert "nothing to do" in hpcexp(*asked).out
    assert before == numbers(place)
