"""Hydra's stock launchers under `-m`: jobs in their processes, one table, one exit status, nothing left running."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from helpers import Said, ended, start, wait_until, write_module

from hpcexp.errors import ConfigError
from hpcexp.files.documents import read_plain
from hpcexp.plan import load_plan
from hpcexp.rundir import find_runs
from hpcexp.sweep.hydra import plugin_launchers

pytestmark = pytest.mark.slow

PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}
LAUNCHERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{module}") is None,
            reason=f"{module} is not installed",
        ),
    )
    for name, module in PLUGINS.items()
]
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "run.pictures=false")
QUICK = (*SHORT, "model.hidden=[8]")

FRAGILE = """
from hpcexp.models.mlp import MLP

class Fragile(MLP):
    def __init__(self, in_shape, num_classes, breaks):
        super().__init__(in_shape, num_classes, hidden=[8])
        if breaks:
            raise ValueError("as thin as glass")
"""


def swept(project: Path, *overrides: str) -> Said:
    """`hpcexp train -m` to its end."""
    return ended(start("train", "-m", *overrides, cwd=project), timeout_s=300)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_of_one_and_two_ranks_run_once_each(project: Path, launcher: str) -> None:
    """The world size that each was trained with, in MLflow too; the table has all."""
    is_tracked = launcher == "joblib"  # the sync process is the same under any launcher
    two = ("strategy=ddp", "hardware=cpu", "hardware.devices=1,2", *([] if is_tracked else ["tracking=off"]))
    said = swept(project, *QUICK, *two, f"hydra/launcher={launcher}")
    assert 0 == said.status, said
    assert 2 == said.out.count("\nfinished  digits_mlp/")
    runs = list(find_runs(project / "runs"))
    assert [1, 2] == sorted(load_plan(run.plan).topology.world_size for run in runs)
    assert [0, 0, 1] == sorted(int(log.stem.partition("-")[2]) for run in runs for log in run.logs.glob("rank-*.log"))
    assert ([("FINISHED", "1"), ("FINISHED", "2")] if is_tracked else []) == recorded(project / "runs" / "mlflow.db")

    again = swept(project, *QUICK, *two, f"hydra/launcher={launcher}")
    assert (0, 2) == (again.status, again.out.count("\nskipped   digits_mlp/")), again


def recorded(database: Path) -> list[tuple[str, str]]:
    """Status and world size of every run in MLflow."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(database)) as store:
        return sorted(
            store.execute(
                "SELECT status, value FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'hpcexp.world_size'"
            ).fetchall()
        )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_fails_is_told_and_the_rest_runs(project: Path, launcher: str) -> None:
    """Exit status 1."""
    write_module(project, "fragile", FRAGILE)
    own = ("~model", "+model._target_=fragile.Fragile", "+model.breaks=true,false")
    said = swept(project, *SHORT, "tracking=off", *own, f"hydra/launcher={launcher}")
    assert 1 == said.status, said
    assert "as thin as glass" in said.out
    assert 1 == said.out.count("\nfailed    digits_mlp/")
    assert 1 == said.out.count("\nfinished  digits_mlp/")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_mistakes_of_all_jobs_are_told_before_any_starts(project: Path, launcher: str) -> None:
    """As without a launcher of Hydra's."""
    wrong = ("optimizer.lr=-1,-2", "tracking=off")
    said = swept(project, *QUICK, *wrong, f"hydra/launcher={launcher}")
    assert 2 == said.status, said
    assert "optimizer.lr=-1" in said.err
    assert "optimizer.lr=-2" in said.err
    assert [] == list(find_runs(project / "runs"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_ends_all_jobs_with_a_checkpoint(project: Path, launcher: str) -> None:
    """And what has not begun does not begin; no process is left."""
    endless = ("trainer.max_epochs=100000", "trainer.log_every_n_steps=1", "tracking=off", "run.pictures=false")
    sweep = start("train", "-m", *endless, "seed=1,2,3", f"hydra/launcher={launcher}", cwd=project)
    try:
        wait_until(lambda: len(list((project / "runs").glob("*/*/metrics.jsonl"))) >= 2, "two jobs that train")
        for run in list(find_runs(project / "runs"))[:2]:
            wait_until(lambda run=run: run.journal.exists() and run.journal.stat().st_size, "steps")
        below = psutil.Process(sweep.pid).children(recursive=True)
        sweep.send_signal(signal.SIGTERM)
        said = ended(sweep)
    finally:
        sweep.kill()
    assert 128 + signal.SIGTERM == said.status, said
    assert 3 == said.out.count("\nkilled    digits_mlp/")
    stopped = [run for run in find_runs(project / "runs") if read_plain(run.status)]
    assert {"killed"} == {read_plain(run.status)["state"] for run in stopped}
    trained = [run for run in stopped if run.journal.exists() and run.journal.stat().st_size]
    assert 2 <= len(trained)
    assert [] == [run for run in trained if not run.last.exists()]
    _, alive = psutil.wait_procs(below, timeout=60)
    assert [] == alive


def test_a_launcher_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the package."""
    monkeypatch.setitem(plugin_launchers.PACKAGES, "joblib", ("hydra_no_such_launcher", "hydra-joblib-launcher"))
    with pytest.raises(ConfigError, match="Fix: pip install hydra-joblib-launcher"):
        plugin_launchers.check_installed(["seed=1,2", "hydra/launcher=joblib"])
    plugin_launchers.check_installed(["hydra/launcher=basic", "seed=1"])
