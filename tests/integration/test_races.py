"""What several processes do to one store at one moment: the act decides, and the loser uses what the winner made."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from postgres import Server
from racers import Racers

pytest.importorskip("optuna", reason="Optuna is not installed")

from optuna.trial import TrialState
from sqlalchemy import text

from hpcexp.errors import ConfigError, RunError
from hpcexp.runs.records.status import RunState
from hpcexp.schema.sweep import Budget, Search
from hpcexp.sweep.search.journal_file import JournalLock, locked
from hpcexp.sweep.search.study import Study
from hpcexp.sweep.spec.spec import Axis, Interval, Objective, Spec
from hpcexp.sweep.store.claims import Claims
from hpcexp.tracking.mlflow.database_lock import database_lock
from hpcexp.tracking.mlflow.store import Model, connect

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""

ROUNDS = 60
ACC = (Objective("val/acc", "max"),)
AXES: dict[str, Axis] = {"optimizer.lr": Interval(1e-4, 1e-1, is_log=True)}


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """Of each kind, as `search.storage` has it."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").uri)
    return {"journal": None, "sqlite": "sqlite:///study.db"}[request.param]


def studied(
    place: Path,
    storage: str | None,
    number: int = 0,
    axes: dict[str, Axis] = AXES,
    sampler: str = "random",
    **search: str,
) -> Study:
    """A search that two drivers share."""
    asked = Search(sampler, storage=storage, study=f"{place.name} {number}", **search)
    spec = Spec(place.name, "", (), axes, objectives=ACC, search=asked, budget=Budget(trials=ROUNDS))
    return Study(spec, ACC, place, project=place, max_epochs=27)


STUDIES = range(6)
"""Of a few trials each, as all that a study has is read again and again."""
TRIALS = range(ROUNDS // len(STUDIES))


def report_and_tell(me: int, start: Callable[[], object], place: Path, storage: str | None) -> None:
    """Each round one trial, which both drivers report on and end, one of them as failed."""
    for number in STUDIES:
        study = studied(place, storage, number, pruner="median")
        for trial in TRIALS:
            start()
            study.report(trial, 1, 0.5)
            study.tell(trial, *((RunState.FINISHED, [0.5]) if trial % 2 == me else (RunState.FAILED, ())))
            assert study.settle(30) is None
        study.close()


def test_drivers_may_tell_of_the_same_trial_at_one_moment(tmp_path: Path, racers: Racers, storage: str | None) -> None:
    """The first one counts; a trial that failed for one and finished for the other has finished."""
    studies = [studied(tmp_path, storage, number) for number in STUDIES]
    for study in studies:
        assert None not in [study.ask() for _ in TRIALS]
    racers.run(report_and_tell, tmp_path, storage)
    for study in studies:
        assert {*TRIALS} == {*study.best()}
        assert {TrialState.COMPLETE} == {trial.state for trial in study.trials().values()}
        study.close()


def tell_again(me: int, start: Callable[[], object], place: Path, storage: str | None) -> None:
    """Each round one trial that had failed, and has finished for both drivers."""
    for number in STUDIES:
        study = studied(place, storage, number)
        for trial in TRIALS:
            start()
            study.tell(trial, RunState.FINISHED, [float(me)])
            assert study.settle(30) is None
        study.close()


def test_a_second_try_is_told_once(tmp_path: Path, racers: Racers, storage: str | None) -> None:
    """It is one more trial to Optuna, of which two would weigh twice."""
    studies = [studied(tmp_path, storage, number) for number in STUDIES]
    for study in studies:
        for _ in TRIALS:
            trial = study.ask()
            assert trial is not None
            study.tell(trial.number, RunState.FAILED)
    racers.run(tell_again, tmp_path, storage)
    for study in studies:
        finished = [trial for trial in study.optuna.trials if trial.state is TrialState.COMPLETE]
        assert [*TRIALS] == sorted(trial.user_attrs["hpcexp.again"] for trial in finished)
        study.close()


def begin_another_space(me: int, start: Callable[[], object], place: Path, storages: list[str | None]) -> list[str]:
    """Each round one new study, which both drivers begin, with an axis of their own; what they were refused with."""
    refused = []
    axes: dict[str, Axis] = {**AXES, f"model.of_{me}": Interval(0.0, 1.0)}
    for number, storage in enumerate(storages):
        start()
        try:
            studied(place, storage, number, axes).close()
        except ConfigError as e:
            refused.append(str(e))
    return refused


def test_of_two_spaces_one_begins_the_study(tmp_path: Path, racers: Racers, storage: str | None) -> None:
    """Trials of both would be mixed otherwise. The other one is refused as if it had come later."""
    one, other = racers.run(begin_another_space, tmp_path, [storage] * 30)
    assert 30 == len(one) + len(other)
    assert all("was begun with another space" in text for text in [*one, *other])


def begin(me: int, start: Callable[[], object], place: Path, storages: list[str]) -> None:
    for storage in storages:
        start()
        studied(place, storage).close()


def test_two_drivers_may_make_a_storage_at_one_moment(tmp_path: Path, racers: Racers, postgres: Server) -> None:
    """Its tables, in databases that have none."""
    racers.run(begin, tmp_path, [postgres.empty(f"studies-{number}") for number in range(10)])


def connect_to(me: int, start: Callable[[], object], place: Path, uris: list[str]) -> list[str]:
    """Ids of one experiment in each store."""
    found = []
    for uri in uris:
        start()
        with warnings.catch_warnings(action="ignore"):  # of SQLAlchemy about MLflow
            found.append(connect(uri, place).experiment("digits"))
    return found


def test_two_processes_may_make_a_store_at_one_moment(tmp_path: Path, racers: Racers, postgres: Server) -> None:
    """MLflow's tables and its first experiment, in databases that have none."""
    uris = [f"sqlite:///{tmp_path}/mlflow.db", *(postgres.empty(f"store-{number}") for number in range(2))]
    one, other = racers.run(connect_to, tmp_path, uris)
    assert one == other


def test_what_keeps_mlflows_tables_from_being_made_is_told(tmp_path: Path, postgres: Server) -> None:
    """A table that a start in former times, or somebody else, has left there."""
    uri = postgres.empty("half")
    with database_lock(uri, "test") as connection:
        connection.execute(text("CREATE TABLE latest_metrics (key text)"))
    with pytest.raises(RunError, match=r"nothing is recorded(.|\n)*latest_metrics(.|\n)*Fix:") as said:
        connect(uri, tmp_path)
    assert "s3cr3t" not in str(said.value)


def register(me: int, start: Callable[[], object], place: Path, uri: str, models: list[tuple[str, str]]) -> list[str]:
    """The versions that each model got, under one name."""
    registry = connect(uri, place).registry()
    versions = []
    for model_id, run_id in models:
        start()
        with warnings.catch_warnings(action="ignore"):  # as above
            versions.append(registry.register("digits", "", model_id, run_id, {}))
    return versions


def test_a_model_that_is_promoted_twice_at_one_moment_is_one_version(
    tmp_path: Path, racers: Racers, postgres: Server
) -> None:
    """Of a name that neither of them has found."""
    uri = postgres.empty("models")
    store = connect(uri, tmp_path)
    experiment = store.experiment("digits")
    models = []
    for number in range(15):
        run_id = store.create_run(experiment, f"run {number}", 1, {})
        models.append((store.model(run_id, experiment, Model("digits", {}, {}, ()), is_new=True), run_id))
    one, other = racers.run(register, tmp_path, uri, models)
    assert one == other
    found = store._client.search_model_versions("name = 'digits'")
    assert sorted(one) == sorted(str(version.version) for version in found)


def break_locks(me: int, start: Callable[[], object], place: Path) -> int:
    """Each round the lock of a dead process, which both wait for; how often the other one was inside as well."""
    num_others = 0
    for number in range(10):
        lock = JournalLock(place / f"{number}", grace_s=0.02)
        start()
        with locked(lock):
            try:
                (place / f"inside-{number}").touch(exist_ok=False)
                time.sleep(0.005)
                (place / f"inside-{number}").unlink()
            except FileExistsError:
                num_others += 1
    return num_others


def test_the_lock_of_a_dead_driver_is_broken_by_one(tmp_path: Path, racers: Racers) -> None:
    """And is then had by one after the other."""
    for number in range(10):
        (tmp_path / f"{number}.lock").touch()
    assert [0, 0] == racers.run(break_locks, tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_who_comes_late_to_break_a_lock_leaves_the_next_one(tmp_path: Path) -> None:
    """It has seen the dead one, which another process has removed since, to make its own."""
    file, late = tmp_path / "study.jsonl.lock", JournalLock(tmp_path / "study.jsonl")
    file.touch()
    dead = (file.stat().st_ino, file.stat().st_mtime_ns)
    file.rename(tmp_path / "dead")
    quick = JournalLock(tmp_path / "study.jsonl")
    with locked(quick):
        late._remove(dead)
        assert file.exists()
        late.release()
        assert file.exists()
    assert [tmp_path / "dead"] == list(tmp_path.iterdir())


def test_a_lock_is_broken_although_somebody_died_over_that(tmp_path: Path) -> None:
    """Between the right to remove it and removing it."""
    file = tmp_path / "study.jsonl.lock"
    file.touch()
    told = file.stat()
    file.with_name(f"{file.name}.after-{told.st_ino}-{told.st_mtime_ns}").hardlink_to(file)
    with locked(JournalLock(tmp_path / "study.jsonl", grace_s=0.02)):
        assert [file] == list(tmp_path.iterdir())


GRID: dict[str, Axis] = {"model.width": Interval(1, 20, is_int=True)}


def ask_for_all(me: int, start: Callable[[], object], place: Path, storage: str | None) -> list[str]:
    """Values of a grid that this driver got."""
    study, got = studied(place, storage, 0, GRID, "grid"), []
    start()
    while not study.is_exhausted():
        if (trial := study.ask()) is not None:
            got.append(trial.params["model.width"])
    study.close()
    return got


def test_drivers_get_each_point_of_a_grid_once(tmp_path: Path, racers: Racers, storage: str | None) -> None:
    """Also the point of a trial that was dropped while others were asked for: its driver has died over it."""
    study = studied(tmp_path, storage, 0, GRID, "grid")
    study.ask()
    half_asked = study.optuna.ask()
    later = [trial for _ in range(3) if (trial := study.ask()) is not None]
    study._records.drop(half_asked.number)
    got = [value for values in racers.run(ask_for_all, tmp_path, storage) for value in values]
    first = [trial.params["model.width"] for trial in study.trials().values() if trial.number < 5]
    assert len(later) == 3
    study.close()
    assert [str(n) for n in range(1, 21)] == sorted([*got, *map(str, first)], key=int)


def take_over(me: int, start: Callable[[], object], place: Path) -> list[int]:
    """Which claims this driver got."""
    claims = Claims(place)
    claims.open()
    got = []
    for number in range(100):
        start()
        if claims.take(f"{number}") is None:
            got.append(number)
    start()  # while both live
    claims.close()
    return got


def test_the_claim_of_a_dead_driver_is_taken_over_by_one(tmp_path: Path, racers: Racers) -> None:
    """Also where another one died over taking it over, just now."""
    (tmp_path / "claims").mkdir()
    for number in range(100):
        (tmp_path / "claims" / f"{number}").write_text("dead")
        (tmp_path / "claims" / f".{number}.after-dead").write_text("dead as well")
    one, other = racers.run(take_over, tmp_path)
    assert [*range(100)] == sorted([*one, *other])
    assert [] == list((tmp_path / "claims").iterdir())
