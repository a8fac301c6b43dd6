"""`hpcexp verify`: what was changed, added or removed since a run ended is named."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import FAST, Said, TrainedRun, only_run

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.lineage import manifest
from hpcexp.lineage.manifest import differences, last_record, seal
from hpcexp.plan import VERSION
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import SealedFile
from hpcexp.runs.records.files import write
from hpcexp.runs.records.status import RunState, Status


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has ended, and is sealed."""
    run = RunDir(tmp_path / "runs" / "digits" / "base-1")
    run.lineage.mkdir(parents=True)
    run.checkpoints.mkdir()
    run.plan.write_text(f"version: {VERSION}\n")
    run.journal.write_text('{"t": 1, "s": 1, "m": {"train/loss": 1.0}}\n')
    (run.lineage / "code.json").write_text("{}\n")
    sealed(run.last, b"weights")
    end(run, 1)
    return run


def end(run: RunDir, attempt: int, state: str = "finished") -> str:
    """End an attempt as its supervisor does."""
    status = Status(state=RunState(state), attempt=attempt, ended=1.0)
    digest = seal(run, status)
    write(run.status, status)
    return digest


def sealed(path: Path, content: bytes) -> None:
    """A checkpoint's file."""
    with SealedFile(path) as file:
        file.write(content)
        file.seal({"step": 1, "best": None})


def test_a_finished_run_is_untouched(trained: TrainedRun, hpcexp: Callable[..., Said]) -> None:
    """Though pictures and MLflow's notes come after its end; whatever names it."""
    run_id = read_plain(trained.run.mlflow)["run_id"]
    for named in (str(trained.run.path), run_id, run_id[:8]):
        said = hpcexp("verify", named, "--root", str(trained.project / "runs"))
        assert (0, "") == (said.status, said.err)
        assert "unchanged since" in said.out
    assert trained.run.plots.exists()


def test_what_was_done_to_a_run_is_named(trained: TrainedRun, project: Path, hpcexp: Callable[..., Said]) -> None:
    """A file that was edited, one that is new and one that is gone."""
    run = RunDir(project / "runs" / "digits_mlp" / trained.run.path.name)
    shutil.copytree(trained.run.path, run.path)
    run.plan.write_text(run.plan.read_text().replace("seed: 3", "seed: 4"))
    (run.path / "notes.txt").write_text("better than it was\n")
    run.best.unlink()
    said = hpcexp("verify", "last")
    assert 1 == said.status
    assert "3 differences since" in said.out
    lines = [line.strip() for line in said.out.splitlines()]
    assert "added    notes.txt" in lines
    assert "removed  checkpoints/best.ckpt" in lines
    assert any(line.startswith("changed  plan.yaml: SHA-256 ") for line in lines)
    assert {"added", "removed", "changed"} == {
        d["what"] for d in json.loads(hpcexp("verify", "last", "--json").out)["differences"]
    }


def test_many_runs_are_verified_at_once(trained: TrainedRun, project: Path, hpcexp: Callable[..., Said]) -> None:
    """A line for each; one that cannot be verified keeps no other from it."""
    runs = [RunDir(project / "runs" / "digits_mlp" / name) for name in ("whole", "edited")]
    for run in runs:
        shutil.copytree(trained.run.path, run.path)
    assert 0 == hpcexp("verify", str(runs[0].path), str(trained.run.path)).status
    (runs[1].path / "notes.txt").write_text("better than it was\n")
    said = hpcexp("verify", *(str(run.path) for run in runs), "nowhere")
    assert 1 == said.status
    assert "digits_mlp/whole: unchanged since" in said.out
    assert "digits_mlp/edited: 1 difference since" in said.out
    assert "nowhere" in said.err
    assert 2 == hpcexp("verify", "nowhere", str(runs[0].path)).status


def test_a_checkpoint_too_big_to_read_twice_is_told_by_its_own_checksum(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which was worked out while it was written: the end of training does not wait for another reading."""
    monkeypatch.setattr(manifest, "_READ_LIMIT", 4)
    end(run, 2)
    assert last_record(run.lineage).files["checkpoints/last.ckpt"].crc32 is not None
    assert [] == differences(run)
    content = bytearray(run.last.read_bytes())
    content[0] ^= 1
    run.last.write_bytes(content)
    assert [("changed", "checkpoints/last.ckpt: its checksum differs")] == differences(run)
    sealed(run.last, b"Weights")
    assert [("changed", "checkpoints/last.ckpt: its checksum differs")] == differences(run)


def test_the_best_checkpoint_is_told_by_the_digest_of_the_summary(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank has read it once."""
    monkeypatch.setattr(manifest, "_READ_LIMIT", 4)
    sealed(run.best, b"best weights")
    size = run.best.stat().st_size
    best = {"monitor": "val/acc", "value": 0.9, "epoch": 0, "bytes": size, "sha256": "0" * 64}
    write_json(run.summary, {"best": best})
    end(run, 2)
    assert "0" * 64 == last_record(run.lineage).files["checkpoints/best.ckpt"].sha256


def test_each_record_holds_the_hash_of_the_one_before(run: RunDir) -> None:
    """So the last hash stands for all of them."""
    first, second = last_record(run.lineage).sha256, end(run, 2)
    assert (first, second) == (last_record(run.lineage).previous, last_record(run.lineage).sha256)
    assert [] == differences(run)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda lines: lines[:-1], "the last record is of attempt 2"),
        (lambda lines: lines[1:], "record 1: it does not follow the record before it"),
        (lambda lines: [lines[0], lines[2]], "record 2: it does not follow the record before it"),
        (lambda lines: [lines[0].replace("finished", "failed"), *lines[1:]], "record 1: its own hash differs"),
        (lambda lines: [*lines[:2], lines[2][:40]], "record 3: it is no record"),
        (lambda lines: [], "removed lineage/manifest.jsonl"),
    ],
    ids=["truncated", "beginning gone", "middle gone", "edited", "torn", "emptied"],
)
def test_a_manifest_that_was_tampered_with_is_noticed(
    run: RunDir, edit: Callable[[list[str]], list[str]], expected: str
) -> None:
    """By the chain, and by the number of attempts."""
    end(run, 2)
    end(run, 3)
    file = run.lineage / manifest.MANIFEST
    file.write_text("".join(f"{line}\n" for line in edit(file.read_text().splitlines())))
    assert expected in "\n".join(" ".join(pair) for pair in differences(run))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": "running"}, "was never sealed: its supervisor was killed before it could write a record"),
        ({"state": "killed"}, "was never sealed: its supervisor was killed before it could write a record"),
        ({"state": "killed", "exit": 143}, "removed lineage/manifest.jsonl"),
        ({"state": "finished", "exit": 0}, "removed lineage/manifest.jsonl"),
    ],
)
def test_nobody_is_blamed_for_a_record_that_was_never_written(
    run: RunDir, status: dict[str, object], expected: str
) -> None:
    """By a supervisor that was killed; one that ended its attempt has written it."""
    (run.lineage / manifest.MANIFEST).unlink()
    write_json(run.status, {**status, "attempt": 1})
    assert expected in told(run)


@pytest.mark.parametrize("status", [{"state": "running"}, {"state": "killed"}])
def test_of_an_attempt_whose_supervisor_was_killed_that_is_said(run: RunDir, status: dict[str, object]) -> None:
    """Beside the record of the one before."""
    write_json(run.status, {**status, "attempt": 2})
    assert "the last record is of attempt 1; its supervisor was killed before it could write a record" in told(run)


def told(run: RunDir) -> str:
    """What differs, or why that cannot be said."""
    try:
        return "\n".join(" ".join(pair) for pair in differences(run))
    except RunError as e:
        return str(e)


def test_what_was_removed_is_named_and_what_to_do(run: RunDir, project: Path, hpcexp: Callable[..., Said]) -> None:
    """The whole lineage since the run finished, or its status; once for several runs."""
    other = shutil.copytree(run.path, run.path.with_name("base-2"))
    shutil.rmtree(run.lineage)
    (other / "status.json").unlink()
    said = hpcexp("verify", "base-1", "base-2")
    assert 1 == said.status
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1.0))
    for named, what in (("base-1", "lineage/"), ("base-2", "status.json")):
        assert f"digits/{named}: 1 difference since {since}\n  removed  {what}\n" in said.out
    assert 1 == said.out.count("Fix: restore the files from a backup")
    assert [{"what": "removed", "file": "lineage/"}] == json.loads(hpcexp("verify", "base-1", "--json").out)[
        "differences"
    ]


def test_a_run_without_its_plan_is_there_all_the_same(run: RunDir, project: Path, hpcexp: Callable[..., Said]) -> None:
    """By its name, and with that of its experiment; beside others too."""
    shutil.copytree(run.path, run.path.with_name("base-2"))
    for others in (["base-2"], []):
        run.plan.unlink(missing_ok=True)
        for named in ("base-1", "digits/base-1", str(run.path)):
            said = hpcexp("verify", named)
            assert (2, "") == (said.status, said.out)
            assert "base-1 is no run's directory: it has no plan.yaml.\nFix: restore it from a backup" in said.err
        for name in others:
            shutil.rmtree(run.path.with_name(name))


def test_a_state_that_was_edited_is_noticed(run: RunDir) -> None:
    """The record has what the run ended with."""
    write_json(run.status, {**read_plain(run.status), "state": "failed"})
    assert [("changed", "status.json: state finished → failed")] == differences(run)


def test_files_that_are_to_be_tidied_away_are_not_missed(run: RunDir) -> None:
    """A finished run keeps its best and last checkpoint alone."""
    sealed(run.previous, b"before")
    seal(run, Status(state=RunState.FINISHED, attempt=1), without=[run.previous])
    assert "checkpoints/previous.ckpt" not in last_record(run.lineage).files


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "was never sealed"),
        ({"state": "running", "pid": 1, "host": "elsewhere"}, "is still training"),
    ],
)
def test_what_cannot_be_verified_is_a_mistake(
    project: Path, hpcexp: Callable[..., Said], status: dict[str, object], expected: str
) -> None:
    """Exit status 2, and why."""
    assert 0 == hpcexp("train", *FAST, "launch=dry").status
    if status:
        write_json(only_run(project).status, status)
    said = hpcexp("verify", "last")
    assert (2, "") == (said.status, said.out)
    assert expected in said.err


def test_an_unknown_run_is_a_mistake(project: Path, hpcexp: Callable[..., Said]) -> None:
    """As with other verbs."""
    assert 2 == hpcexp("verify", "nowhere").status
