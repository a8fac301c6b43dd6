"""`-m hydra/sweeper=optuna`: what is asked, and a search by a launcher of Hydra's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import Said, command, write_conf
from hydra.types import RunMode

from hpcexp.compose.composer import Composer
from hpcexp.errors import ConfigError
from hpcexp.schema.sweep import Search
from hpcexp.sweep.hydra.optuna_sweeper import as_typed, is_searched, spec_of
from hpcexp.sweep.spec.axes import task_overrides
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec

OPTUNA = "hydra/sweeper=optuna"


@pytest.fixture
def overrides(project: Path) -> Callable[..., Spec]:
    """The search that overrides ask for."""
    composer = Composer(project)

    def ask(*overrides: str) -> Spec:
        cfg = composer.load([OPTUNA, *overrides], RunMode.MULTIRUN)
        assert is_searched(cfg)
        return spec_of(cfg, composer.repaired(task_overrides(cfg)), composer.loader)

    return ask


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("optimizer.lr=interval(0.001,0.1)", Interval(0.001, 0.1)),
        ("optimizer.lr=tag(log, interval(1e-4, 1e-1))", Interval(1e-4, 1e-1, is_log=True)),
        ("seed=int(interval(1,8))", Interval(1, 8, is_int=True)),
        ("seed=tag(log, int(interval(1,8)))", Interval(1, 8, is_log=True, is_int=True)),
        ("seed=range(1,9)", Interval(1, 8, is_int=True)),
        ("seed=range(1,10,step=2)", Interval(1, 9, is_int=True, step=2)),
        ("seed=range(9,0,-3)", Interval(3, 9, is_int=True, step=3)),
        ("model.dropout=range(0,0.5,step=0.1)", Interval(0, 0.4, step=0.1)),
        ("model=choice(mlp,cnn)", Choices(("mlp", "cnn"))),
        ("model=glob(*)", Choices(("cnn", "mlp", "resnet", "vit"))),
        ("optimizer.lr=0.1,1e-3", Choices(("0.1", "0.001"))),
        ("model.hidden=[64],[64,32]", Choices(("[64]", "[64,32]"))),
        ("notes='a b','c,d'", Choices(("'a b'", "'c,d'"))),
    ],
)
def test_axes_are_those_of_hydras_plugin(overrides: Callable[..., Spec], override: str, axis: Axis) -> None:
    """An end of a range is not among its values, as everywhere in Hydra."""
    assert {override.partition("=")[0]: axis} == dict(overrides(override).axes)


def test_the_settings_of_the_sweeper_are_those_of_the_search(overrides: Callable[..., Spec]) -> None:
    """Axes may stand in `hydra.sweeper.params`; the command line comes first, and has the base."""
    spec = overrides(
        "hydra.sweeper.sampler=nsga2",
        "hydra.sweeper.n_trials=7",
        "hydra.sweeper.seed=3",
        "hydra.sweeper.study_name=mine",
        "hydra.sweeper.storage=sqlite:///s.db",
        "hydra.sweeper.metric=[val/acc,durations.fit_s]",
        "hydra.sweeper.direction=[maximize,minimize]",
        "+hydra.sweeper.params.seed='interval(0.1,1)'",
        "model=mlp,cnn",
        "trainer.max_epochs=2",
        "model.dropout=0.1",
    )
    assert Search("nsga2", "none", "sqlite:///s.db", "mine", 3) == spec.search
    assert (7, "mine") == (spec.budget.trials, spec.name)
    assert (Objective("val/acc", "max"), Objective("durations.fit_s", "min")) == spec.objectives
    assert {"seed": Interval(0.1, 1.0), "model": Choices(("mlp", "cnn"))} == dict(spec.axes)
    assert ("trainer.max_epochs=2", "model.dropout=0.1") == spec.base


def test_a_search_is_named_by_what_it_asks(overrides: Callable[..., Spec]) -> None:
    """The same command resumes it, whatever its budget and order.

    The monitor is optimised, and what the task measures in the direction that is better.
    """
    one = overrides("optimizer.lr=interval(0.1,1)", "trainer.max_epochs=2")
    same = overrides(
        "trainer.max_epochs=2", "hydra.sweeper.n_trials=99", "optimizer.lr=interval(0.1,1)", "tracking=off"
    )
    other = overrides("optimizer.lr=interval(0.1,1)", "trainer.max_epochs=3")
    assert one.name == same.name != other.name
    assert (Objective("val/acc", "max"),) == one.objectives
    assert (Objective("val/loss", "min"),) == overrides("seed=1,2", "hydra.sweeper.metric=val/loss").objectives


def test_wrong_settings_are_told_together(overrides: Callable[..., Spec]) -> None:
    """In the words of the command line."""
    with pytest.raises(ConfigError) as caught:
        overrides(
            "seed=1,2",
            "hydra.sweeper.sampler=tpee",
            "hydra.sweeper.n_trials=0",
            "hydra.sweeper.n_jobs=0",
            "hydra.sweeper.metric=val/own",
        )
    told = "\n".join(caught.value.problems)
    for word in ("sampler=tpee", "n_trials=0", "n_jobs=0", "direction=None"):
        assert f"hydra.sweeper.{word}" in told
    assert "hydra.sweeper.study_name and hydra.sweeper.n_trials" == as_typed("search.study and budget.trials")


QUICK = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "model.hidden=[8]", "tracking=off")


def searched(project: Path, *overrides: str) -> Said:
    joblib = ("hydra/launcher=joblib", OPTUNA, "hydra.sweeper.n_jobs=2", *QUICK)
    return command("train", "-m", *joblib, *overrides, cwd=project)


def studies(project: Path) -> Sequence[Path]:
    return sorted((project / "runs" / "sweeps" / ".hydra").glob("*/study.jsonl"))


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed",
)
def test_a_launcher_of_hydras_runs_a_search(project: Path) -> None:
    """Two jobs at a time. The same command with more trials goes on; what fails, or cannot be planned, is told so."""
    grid = ("model.dropout=0.1,2.0", "data.global_batch_size=64,100000", "hydra.sweeper.sampler=grid")
    said = [searched(project, *grid, f"hydra.sweeper.n_trials={trials}") for trials in (2, 4)]
    assert [1, 1] == [s.status for s in said], said
    assert [1, 1] == [said[0].out.count(f"\n{state:<9} digits_mlp/") for state in ("finished", "failed")]
    assert 2 == said[1].err.count("data.global_batch_size=100000\n")
    [study] = studies(project)
    assert 4 == study.read_text().count('"op_code":4,')
    best = said[1].out.partition(f"Study digits_mlp-search-{study.parent.name[-8:]} in {study}:\n")[2].splitlines()[0]
    assert "val/acc" in best
    assert "model.dropout=0.1 data.global_batch_size=64" in best
    assert (study.parent / "plots" / "history.png").exists()


@pytest.mark.slow
def test_launchers_of_hydras_cannot_prune(project: Path) -> None:
    """They have no way to ask; every other problem is told with it."""
    said = searched(project, "optimizer.lr=interval(0.1,1)", "hydra.sweeper.pruner=asha", "hydra.sweeper.sampler=grid")
    assert 2 == said.status
    assert "hydra.sweeper.pruner=asha: JoblibLauncher cannot end a job" in said.err
    assert "hydra.sweeper.sampler=grid cannot count the values of optimizer.lr" in said.err
    assert [] == studies(project)


TEMPLATE = """
# @package _global_
defaults:
  - override /hydra/sweeper: optuna
name: x
hydra:
  mode: MULTIRUN
  sweeper:
    _target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper
    storage: null
    study_name: null
    n_jobs: 1
    direction: minimize
    metric: val/loss
    n_trials: 4
    max_failure_rate: 0.0
    sampler:
      _target_: optuna.samplers.TPESampler
      seed: 1234
      n_startup_trials: 10
    params:
      optimizer.lr: interval(0.0001, 0.1)
      data.global_batch_size: choice(32, 64)
"""


def test_a_file_for_hydras_plugin_is_taken(project: Path, hpcexp: Callable[..., Said]) -> None:
    """As the common templates have it, without -m."""
    write_conf(project, {"experiment/x.yaml": TEMPLATE.lstrip()})
    composer = Composer(project)
    cfg = composer.load(["experiment=x"], RunMode.MULTIRUN)
    spec = spec_of(cfg, composer.repaired(["experiment=x"]), composer.loader)
    assert spec.search is not None
    assert ("tpe", 1234, 4, True) == (spec.search.sampler, spec.search.seed, spec.budget.trials, spec.is_fail_fast)
    assert {"optimizer.lr", "data.global_batch_size"} == {*spec.axes}
    assert "launch.max_jobs=1" in spec.base
    said = hpcexp("plan", "experiment=x")
    assert (0, True) == (said.status, "2 jobs" in said.out), said.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n_startup_trials: 10", "n_startup_trials: 3"),
        ("optuna.samplers.TPESampler", "optuna.samplers.QMCSampler"),
        ("max_failure_rate: 0.0", "max_failure_rate: 0.3"),
        ("n_jobs: 1", "search_space: {optimizer.lr: {type: float, low: 0.1, high: 1}}"),
        ("n_jobs: 1", "custom_search_space: own.configure"),
        ("n_jobs: 1", "n_trails: 3"),
    ],
)
def test_what_hydras_plugin_takes_and_hpcexp_does_not_is_refused(
    project: Path, hpcexp: Callable[..., Said], line: str, words: str
) -> None:
    """With hpcexp's word for it."""
    write_conf(project, {"experiment/x.yaml": TEMPLATE.lstrip().replace(line, words)})
    said = hpcexp("plan", "experiment=x")
    assert 2 == said.status
    assert "hydra.sweeper." in said.err
    assert words.partition(":")[0].rpartition(" ")[2] in said.err or "QMCSampler" in said.err
