"""Damaged files of a run: each is named with a way out, and keeps no other run from what is asked of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import FAST, Said, command
from record_support import finish, free_port, make_run, make_sweep

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.lineage.manifest import MANIFEST, differences, last_record, seal
from hpcexp.plan import load_head, load_plan
from hpcexp.rundir import RunDir, find_runs, find_sweeps
from hpcexp.runs.records.lineage import Seal
from hpcexp.runs.records.status import RunState, Status, read_status

mlflows_sqlalchemy = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")
DAMAGE = {
    "cut off": lambda file: file.write_bytes(b'{"state": "fin'),
    "empty": lambda file: file.write_bytes(b""),
    "a list": lambda file: file.write_bytes(b"[]"),
    "a number": lambda file: file.write_bytes(b"3"),
    "no text": lambda file: file.write_bytes(b'{"state": "\xff"}'),
    "a directory": lambda file: (file.unlink(missing_ok=True), file.mkdir()),
}
STATUS = ["sweep", "last", "--status"]
Damage = Callable[[Path], object]


@pytest.fixture(params=DAMAGE.values(), ids=DAMAGE)
def damage(request: pytest.FixtureRequest) -> Damage:
    """What befalls a file."""
    found: Damage = request.param
    return found


def finished(root: Path, name: str = "lr=0.01") -> RunDir:
    """A finished run that MLflow is not to have."""
    run = make_run(root, None, name=name)
    finish(run)
    return run


def test_what_is_no_json_object_is_damaged(tmp_path: Path, damage: Damage) -> None:
    """Whatever else it is."""
    damage(tmp_path / "status.json")
    with pytest.raises(RunError, match=r"status\.json is damaged: (?s:.+)\nFix: "):
        read_plain(tmp_path / "status.json")


@pytest.mark.parametrize("read", [load_head, load_plan])
@pytest.mark.parametrize("name", ["no text", "a directory"])
def test_a_plan_that_cannot_be_read_is_damaged(tmp_path: Path, read: Callable[[Path], object], name: str) -> None:
    """A byte that is no UTF-8, and a directory in its place."""
    run = finished(tmp_path)
    DAMAGE[name](run.plan)
    with pytest.raises(RunError, match=r"plan\.yaml is damaged: "):
        read(run.plan)


@pytest.mark.parametrize("damaged", [b"\xff", b'"attempt": 1, "f'])
def test_a_run_goes_on_beneath_a_damaged_seal(tmp_path: Path, damaged: bytes) -> None:
    """Its next attempt is sealed, and the break in the chain is reported."""
    run = finished(tmp_path)
    seal(run, Status(state=RunState.FAILED, attempt=1))
    file = run.lineage / MANIFEST
    file.write_bytes(damaged + file.read_bytes()[len(damaged) :])
    assert Seal() == last_record(run.lineage)
    assert ("changed", f"lineage/{MANIFEST}, record 1: it is no record") in differences(run)
    seal(run, Status(state=RunState.FINISHED, attempt=2))
    assert 2 == last_record(run.lineage).attempt
    assert ("changed", f"lineage/{MANIFEST}, record 1: it is no record") in differences(run)


def test_a_directory_in_the_place_of_the_seals_is_damage(tmp_path: Path, hpcexp: Callable[..., Said]) -> None:
    """Of which `verify` says no more."""
    run = finished(tmp_path)
    (run.lineage / MANIFEST).mkdir(parents=True)
    said = hpcexp("verify", str(run.path))
    assert (2, "") == (said.status, said.out)
    assert f"{MANIFEST} is damaged: it is a directory" in said.err


@pytest.mark.parametrize("file", ["status", "mlflow", "summary"])
def test_a_list_says_what_it_leaves_out(hpcexp: Callable[..., Said], project: Path, damage: Damage, file: str) -> None:
    """With the reason, beside all the others; also where nothing is left."""
    kept, lost = (finished(project / "runs", name) for name in ("kept", "lost"))
    damage(getattr(lost, file))
    said = hpcexp("runs")
    assert 0 == said.status
    assert "digits_mlp/kept" in said.out
    assert "digits_mlp/lost" not in said.out
    assert f"left out: {getattr(lost, file)} is damaged: " in said.err
    shutil.rmtree(kept.path)
    said = hpcexp("runs")
    assert (0, "") == (said.status, said.out)
    assert said.err.startswith("left out: ")


@pytest.mark.parametrize("name", ["no text", "a directory"])
def test_a_damaged_plan_is_left_out_too(hpcexp: Callable[..., Said], project: Path, name: str) -> None:
    """As anything else that cannot be read."""
    DAMAGE[name](finished(project / "runs").plan)
    why = "it is no plan" if name == "no text" else "it is a directory"
    assert f"plan.yaml is damaged: {why}." in hpcexp("runs").err


def test_the_last_run_is_one_that_says_when_it_started(hpcexp: Callable[..., Said], project: Path) -> None:
    """The damaged one is reported; where there is no other, it is a mistake."""
    kept, lost = (finished(project / "runs", name) for name in ("kept", "lost"))
    seal(kept, read_status(kept))
    lost.status.write_text("{")
    said = hpcexp("verify", "last")
    assert (0, "digits_mlp/kept: unchanged") == (said.status, said.out[:26])
    assert f"left out: {lost.status} is damaged: " in said.err
    kept.status.write_text("{")
    said = hpcexp("verify", "last")
    assert (2, "") == (said.status, said.out)
    assert "status.json is damaged: " in said.err


@mlflows_sqlalchemy
@pytest.mark.parametrize("file", ["plan", "status", "mlflow"])
@pytest.mark.parametrize("name", ["empty", "a list"])
def test_what_can_be_synced_is(hpcexp: Callable[..., Said], project: Path, name: str, file: str) -> None:
    """Beside a damaged run, which is named once, and a damaged sweep."""
    damage = DAMAGE[name]
    uri = f"sqlite:///{project}/mlflow.db"
    for run in ("kept", "lost"):
        finish(make_run(project / "runs", uri, name=run, model="never"))
    lost = RunDir(project / "runs" / "digits_mlp" / "lost")
    sweep = make_sweep(project / "runs")
    damage(getattr(lost, file))
    damage(sweep.status)
    sweep.jobs.write_bytes(b"\xff\n")
    (sweep.path / "drivers").mkdir()
    damage(sweep.path / "drivers" / "1.json")
    said = hpcexp("sync")
    assert 1 == said.status
    assert f"digits_mlp/lost: {getattr(lost, file)} is damaged: " in said.out
    assert "0 of 1 ended sweeps" in said.out
    assert "1 of 2 ended runs" in said.out
    assert read_plain(lost.path.with_name("kept") / "mlflow.json")["synced"] is True
    assert 1 == (said.out + said.err).count(f"{getattr(lost, file)} is damaged")


def test_what_is_not_synced_is_said_once(hpcexp: Callable[..., Said], project: Path) -> None:
    """Where the answer is looked for, without the time."""
    finish(make_run(project / "runs", f"http://127.0.0.1:{free_port()}"))
    said = hpcexp("sync")
    assert (1, "") == (said.status, said.err)
    assert 1 == said.out.count("Connection refused")


def test_a_sweep_goes_on_beside_a_damaged_run(hpcexp: Callable[..., Said], project: Path) -> None:
    """Its jobs but that one are planned, run, ranked and listed; the damage is told each time."""
    asked = ["-m", "seed=1,2,3", *FAST]
    assert 0 == hpcexp("train", *asked).status
    fresh, lost, _ = find_runs(project / "runs")
    shutil.rmtree(fresh.path)
    for file in (lost.summary, lost.plan, lost.status):
        whole = file.read_bytes()
        file.write_bytes(b'{"cut')
        told = f"{file} is damaged: "
        planned, trained, stands = (hpcexp(*argv) for argv in (["plan", *asked], ["train", *asked], STATUS))
        assert (0, 1) == (planned.status, trained.status)
        assert ", 1 damaged" in planned.out
        assert "3 jobs: 2 finished, 1 failed" in trained.out
        assert all(told in said.out for said in (planned, trained))
        if file != lost.plan:  # which a standing does not look at
            assert (1, True) == (stands.status, told in stands.out)
        assert "3 jobs: " in hpcexp("sweep").out
        file.write_bytes(whole)
        assert "nothing to do" in hpcexp("train", *asked).out
    write_json(lost.status, {**read_plain(lost.status), "state": "killed"})
    lost.plan.write_bytes(b'{"cut')
    assert "3 jobs: 2 finished, 1 failed" in hpcexp("train", *asked).out
    [sweep] = find_sweeps(project / "runs")
    sweep.status.write_text("[]")
    assert f"{sweep.status} is damaged: expected `object`, got `array`." in hpcexp("sweep").out


def test_a_finished_job_whose_sync_is_damaged_need_not_run(project: Path) -> None:
    """What `sync` says of it is another matter."""
    asked = ("train", "-m", "seed=1", *FAST, "tracking.enabled=true", f"tracking.uri=http://127.0.0.1:{free_port()}")
    assert 0 == command(*asked, cwd=project).status
    [run] = find_runs(project / "runs")
    run.mlflow.write_text("")
    said = command(*asked, cwd=project)
    assert (0, True) == (said.status, "nothing to do" in said.out)
