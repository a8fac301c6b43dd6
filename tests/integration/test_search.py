"""Searches at work: every rank trains what was asked, and a search that is killed goes on where it was."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import command, start
from helpers import LEAN, Said, ended, wait_until, write_module
from postgres import server_programs, serving_postgres
from record_support import query

from hpcexp.files.documents import read_plain
from hpcexp.rundir import find_runs
from hpcexp.sweep.search.storage import close_storage, open_storage, storage_uri
from hpcexp.sweep.store.directory import find_sweeps

pytest.importorskip("optuna", reason="Optuna is not installed (hpcexp[optuna])")
pytestmark = pytest.mark.slow

QUICK = ("trainer.limit_train_batches=2", "tracking=off", *LEAN)

TOLD = """
import json
import pytorch_lightning as pl

class Told(pl.Callback):
    '''What each rank trains with, as its own optimizer and model have it.'''
    def on_train_end(self, trainer, module):
        group = trainer.optimizers[0].param_groups[0]
        told = {"lr": group["initial_lr"] if "initial_lr" in group else group["lr"], "decay": group["weight_decay"]}
        told["params"] = sum(p.numel() for p in module.parameters())
        with open(f"{trainer.default_root_dir}/told-{trainer.global_rank}.json", "w") as file:
            json.dump(told, file)
"""

SEARCH = """
question: How good can it get?
base: [{base}]
axes:
  optimizer.lr: {{low: 0.001, high: 0.1, log: true}}
  optimizer.weight_decay: {{low: 0.0001, high: 0.1, log: true}}
  model.hidden: [[8], [16], [32]]
search: {{sampler: tpe}}
budget: {{trials: {trials}}}
"""


def written(project: Path, trials: int, *base: str) -> None:
    (project / "sweeps").mkdir(exist_ok=True)
    (project / "sweeps" / "mine.yaml").write_text(SEARCH.format(base=", ".join(base), trials=trials))


def test_every_rank_of_every_trial_trains_what_was_asked(hpcexp: Callable[..., Said], project: Path) -> None:
    """Unseeded, under DDP: Hydra's own plugin had each rank draw for itself."""
    write_module(project, "told", TOLD)
    ranks = ("hardware=cpu", "hardware.devices=2", "strategy=ddp", "callbacks.told._target_=told.Told")
    written(project, 3, "trainer.max_epochs=1", *ranks, *QUICK)
    said = hpcexp("sweep", "mine")
    assert 0 == said.status, said
    [place] = find_sweeps(project / "runs")
    entries = [json.loads(line) for line in place.jobs.read_text().splitlines()]
    assert 3 == len({entry["signature"] for entry in entries})
    for entry in entries:
        asked = dict(override.split("=", 1) for override in entry["overrides"])
        told = [json.loads((place.root / entry["run"] / f"told-{rank}.json").read_text()) for rank in range(2)]
        assert told[0] == told[1]
        assert float(asked["optimizer.lr"]) == pytest.approx(told[0]["lr"])
        assert float(asked["optimizer.weight_decay"]) == told[0]["decay"]


def test_a_killed_search_goes_on_to_its_total(project: Path) -> None:
    """The interrupted trial resumes under its number, and draws are not repeated."""
    endless = ("trainer.max_epochs=100000", "trainer.log_every_n_steps=1", *QUICK, "launch.max_jobs=1")
    written(project, 3, *endless)
    driver = start("sweep", "mine", cwd=project)
    try:
        wait_until(lambda: any(run.journal.exists() for run in find_runs(project / "runs")), "a step")
        driver.send_signal(signal.SIGINT)
        assert 130 == ended(driver).status
    finally:
        driver.kill()
        ended(driver)
    [place] = find_sweeps(project / "runs")
    [first] = [json.loads(line) for line in place.jobs.read_text().splitlines()]
    said = command("sweep", "mine", "trainer.max_steps=4", cwd=project)
    assert 0 == said.status, said
    entries = [json.loads(line) for line in place.jobs.read_text().splitlines()]
    assert {0, 1, 2} == {entry["trial"] for entry in entries}
    assert 3 == len({tuple(entry["overrides"]) for entry in entries})
    assert first["overrides"] == next(entry for entry in entries if entry["trial"] == 0)["overrides"]
    assert "3 jobs: 3 finished" in said.out
    again = command("sweep", "mine", "trainer.max_steps=4", cwd=project)
    assert 0 == again.status
    assert not re.search(r"^\[\d", again.out, re.MULTILINE)
    assert "3 jobs: 3 finished" in again.out


GATED = """
import time
from pathlib import Path
from hpcexp.models.mlp import MLP

class Gated(MLP):
    '''Trains once there is a file `gate`.'''
    def forward(self, x):
        while self.training and not Path("gate").exists():
            time.sleep(0.05)
        return super().forward(x)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a study is kept that several drivers share."""
    if request.param == "sqlite":
        yield "sqlite:///study.db"
    elif server_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    else:
        with serving_postgres() as server:
            yield server.uri


def test_thirty_trials_at_once_lose_nothing(project: Path, storage: str) -> None:
    """Three drivers with ten jobs each, all of them at work at one moment: in study, ledger and MLflow each is once."""
    write_module(project, "gated", GATED)
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=33", f"hydra.sweeper.storage={storage}")
    named = ("hydra.sweeper.study_name=thirty", "optimizer.lr=tag(log,interval(1e-4,1e-1))")
    short = ("~model", "+model._target_=gated.Gated", "trainer.max_epochs=1", "trainer.limit_train_batches=2", *LEAN)
    shared = ("hardware=cpu", "hardware.share=30", "hardware.threads_per_rank=1", "launch.max_jobs=10")
    shared += ("tracking.wait_s=240",)
    drivers = [start("train", "-m", *search, *named, *short, *shared, cwd=project) for _ in range(3)]
    try:
        wait_until(lambda: states(project).count("running") == 30 or any(d.poll() for d in drivers), "thirty jobs")
        (project / "gate").touch()
        said = [ended(driver) for driver in drivers]
    finally:
        for driver in drivers:
            driver.kill()
    assert [0, 0, 0] == [one.status for one in said], "\n=====\n".join(one.out + one.err for one in said)
    [place] = find_sweeps(project / "runs")
    entries = [json.loads(line) for line in place.jobs.read_text().splitlines()]
    assert 33 == len({entry["trial"] for entry in entries}) == len(entries)
    assert ["finished"] * 33 == states(project)
    study = open_storage(storage_uri(storage, project), project)
    every = study.get_all_trials(study.get_study_id_from_name("thirty"))
    close_storage(study)
    trials = [trial for trial in every if "hpcexp.surplus" not in trial.user_attrs]
    assert {"COMPLETE"} == {trial.state.name for trial in trials}
    assert sorted(entry["trial"] for entry in entries) == [trial.number for trial in trials]
    tags = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'"
    assert [(33,)] == query(project / "runs" / "mlflow.db", tags)


def states(project: Path) -> list[str]:
    return [str(read_plain(run.status).get("state")) for run in find_runs(project / "runs")]


def test_several_objectives_have_a_front(hpcexp: Callable[..., Said], project: Path) -> None:
    """Ranked by the first; each job has both values."""
    (project / "sweeps").mkdir()
    (project / "sweeps" / "mine.yaml").write_text(
        f"question: Q\nbase: [trainer.max_epochs=1, {', '.join(QUICK)}]\n"
        "axes: {model.hidden: [[8], [32]], seed: [1, 2]}\n"
        "search: {sampler: nsga2}\nbudget: {trials: 4}\nmetric: {val/acc: max, num_params: min}\n"
    )
    said = hpcexp("sweep", "mine")
    assert 0 == said.status, said
    [place] = find_sweeps(project / "runs")
    head, *rows = (line.split(",") for line in place.table_csv.read_text().splitlines())
    assert {"val/acc", "num_params"} <= set(head)
    assert all(float(row[head.index("num_params")]) > 500 for row in rows if row[head.index("state")] == "finished")
    assert (place.plots / "pareto.png").exists() or any("pareto" in f.name for f in place.plots.iterdir())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["metric=val/akk", "mode=max"], ["metric=val/akk: this experiment does not record it", "val/acc"]),
        (["search.sampler=cmaes"], ["model.hidden", "cmaes"]),
        (["search.pruner=hyperbend"], ["search.pruner=hyperbend", "hyperband"]),
        (["search.storage=postgresql://ada:s3cret@127.0.0.1:1/db"], ["127.0.0.1:1", "Fix:"]),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_it_starts(
    hpcexp: Callable[..., Said], project: Path, asked: list[str], told: list[str]
) -> None:
    """With what is wrong, what there is instead, and no password."""
    written(project, 3, "trainer.max_epochs=1", *QUICK)
    said = hpcexp("sweep", "mine", *asked)
    assert 2 == said.status, said
    for part in told:
        assert part in said.err
    assert "s3cret" not in said.err
    assert [] == list(find_runs(project / "runs"))


def test_another_space_is_not_mixed_into_a_study(hpcexp: Callable[..., Said], project: Path) -> None:
    """What it has learned would not hold."""
    written(project, 1, "trainer.max_epochs=1", *QUICK)
    assert 0 == hpcexp("sweep", "mine").status
    said = hpcexp("sweep", "mine", "model.hidden=[8],[64]", "budget.trials=2")
    assert 2 == said.status, said
    assert "was begun with another space" in said.err
    assert "model.hidden" in said.err
    assert 0 == hpcexp("sweep", "mine", "budget.trials=2").status
    assert 2 == len(list(find_runs(project / "runs")))
