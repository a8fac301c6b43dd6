"""What is begun in steps, an export, a run, a sweep, a study, begins again after a kill at whichever step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from killing import is_killed_at
from racers import Racers
from record_support import make_plan

from hpcexp.cli.model import _named_once_whole
from hpcexp.errors import RunError
from hpcexp.launch.resume.interrupted import begins_again
from hpcexp.launch.supervisor.lifecycle import freeze
from hpcexp.plan import load_plan
from hpcexp.rundir import RunDir, SweepDir, find_runs, find_sweeps
from hpcexp.schema.sweep import Budget, Search
from hpcexp.sweep.spec.spec import Choices, Objective, Spec
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.directory import ask
from hpcexp.sweep.store.ledger import Ledger, LedgerEntry

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


def export(path: Path, *, is_directory: bool) -> None:
    """As `hpcexp export` writes a program, or MLflow's directory of one."""
    with _named_once_whole(path) as made:
        for file in [made / "MLmodel", made / "program"] if is_directory else [made]:
            file.parent.mkdir(exist_ok=True)
            with file.open("w") as opened:
                opened.write("first")
                opened.flush()
                os.fsync(opened.fileno())
                opened.write(", last")


def kill_over_exports(_: int, __: object, place: Path, is_directory: bool) -> int:
    """How many were killed; what they leave under the name is whole."""
    for num_killed, step in enumerate(range(1, 100)):
        path = place / f"model-{step}"
        was_killed = is_killed_at(step, lambda path=path: export(path, is_directory=is_directory))
        if not path.exists():
            export(path, is_directory=is_directory)
        files = [path / "MLmodel", path / "program"] if is_directory else [path]
        assert {"first, last"} == {file.read_text() for file in files}
        if not was_killed:
            return num_killed
    raise AssertionError


@pytest.mark.parametrize("is_directory", [False, True])
def test_a_model_whose_export_is_killed_is_not_there(tmp_path: Path, killer: Racers, is_directory: bool) -> None:
    """Somebody would use the half of it, and the next export be refused. What is there is not written over."""
    [num_killed] = killer.run(kill_over_exports, tmp_path, is_directory)
    assert num_killed > 4
    with pytest.raises(RunError, match="exists already"):
        export(tmp_path / "model-1", is_directory=is_directory)


def export_each(me: int, start: Callable[[], object], place: Path) -> int:
    """How often this process was the one to export."""
    num_made = 0
    for number in range(200):
        start()
        try:
            with _named_once_whole(place / f"{number}") as made:
                made.write_text("whole")
            num_made += 1
        except RunError:
            assert (place / f"{number}").read_text() == "whole"
    return num_made


def test_of_two_exports_to_one_place_one_is_refused(tmp_path: Path, racers: Racers) -> None:
    """At one moment, two hundred times."""
    assert 200 == sum(racers.run(export_each, tmp_path))


def kill_over_beginnings(_: int, __: object, place: Path) -> tuple[int, int]:
    """How often the beginning of a run, and that of a sweep, was killed. Each begins again as if nothing had been."""
    runs = _num_killed(lambda at: _begin_run(place / at), lambda at: find_runs(place / at))
    sweeps = _num_killed(lambda at: _begin_sweep(place / at), lambda at: find_sweeps(place / at))
    return runs, sweeps


def _num_killed(
    begin: Callable[[str], object], found: Callable[[str], Iterator[RunDir] | Iterator[SweepDir]], every: int = 1
) -> int:
    for num_killed, step in enumerate(range(1, 100 * every, every)):
        was_killed = is_killed_at(step, lambda step=step: begin(f"{step}"))
        begin(f"{step}")
        assert len(list(found(f"{step}"))) == 1
        if not was_killed:
            return num_killed
    raise AssertionError


def _begin_run(root: Path) -> None:
    plan = replace(make_plan(root / "digits_mlp" / "lr=0.01", "sqlite:///mlflow.db"), secrets={"model.token": "x"})
    run = freeze(plan, is_again=begins_again(plan))
    assert load_plan(run.plan).signature == plan.signature


def _begin_sweep(root: Path) -> None:
    place = SweepDir(root / "sweeps" / "mine")
    spec = Spec("mine", "", (), {"optimizer.lr": Choices(("0.1", "0.2"))})
    assert [] == ask(place, spec, root, "hpcexp sweep mine")
    claims = Claims(place.path)
    claims.open()
    entries = Ledger(place.path, claims).enter([LedgerEntry(0, ("optimizer.lr=0.1",), (), None, "a" * 64, "")])
    assert [1] == [entry.job for entry in entries]
    claims.close()


def test_a_run_or_a_sweep_that_is_killed_over_its_beginning_begins_again(tmp_path: Path, killer: Racers) -> None:
    """At whichever step of making its directory."""
    [(runs, sweeps)] = killer.run(kill_over_beginnings, tmp_path)
    assert runs > 5
    assert sweeps > 15


def begin_each_sweep(me: int, start: Callable[[], object], place: Path) -> None:
    for number in range(100):
        start()
        _begin_sweep(place / f"{number}")


def test_two_drivers_may_begin_a_sweep_at_one_moment(tmp_path: Path, racers: Racers) -> None:
    """Neither takes what the other has just made for something else, and its job has one number."""
    racers.run(begin_each_sweep, tmp_path)


def kill_over_studies(_: int, __: object, place: Path, storage: str | None) -> int:
    """How often the beginning of a study was killed. The next one begins it."""
    from hpcexp.sweep.search import journal_file
    from hpcexp.sweep.search.study import Study

    journal_file.GRACE_S = 0.1  # in this process alone

    def begin(at: str) -> None:
        objectives = (Objective("val/acc", "max"),)
        search = Search("random", storage=storage)
        spec = Spec("mine", "", (), {"a": Choices(("1", "2"))}, search=search, budget=Budget(trials=1))
        study = Study(spec, objectives, place / at, project=place / at, max_epochs=1)
        assert [] == study.unfinished()
        study.close()

    def nothing_else(at: str) -> Iterator[SweepDir]:
        yield SweepDir(place / at)

    return _num_killed(begin, nothing_else, every=7)


@pytest.mark.parametrize("storage", [None, "sqlite:///study.db"])
def test_a_study_that_is_killed_over_its_beginning_begins_again(
    tmp_path: Path, killer: Racers, storage: str | None
) -> None:
    """Optuna makes the tables that are missing; a dead driver's lock on a journal is waited for."""
    pytest.importorskip("optuna", reason="Optuna is not installed")
    [num_killed] = killer.run(kill_over_studies, tmp_path, storage)
    assert num_killed > 3
