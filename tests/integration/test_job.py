"""`python -m hpcexp.job`: real ranks on hand-made plans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from training_plans import digits_plan, run_job, run_warm

from hpcexp.files.documents import read_plain
from hpcexp.launch.supervisor.ranks import Ranks
from hpcexp.plan import save_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Point, read_points


def journal(run_dir: Path) -> list[Point]:
    return read_points(RunDir(run_dir).journal)[0]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it tells its supervisor lies beside its run directory, as progress.jsonl: nobody reads it meanwhile."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    save_plan(digits_plan(run_dir), run_dir / "plan.yaml")
    reader, writer = os.pipe()
    command = [sys.executable, "-W", "error", "-m", "hpcexp.job", str(run_dir)]
    environment = {**os.environ, "HPCEXP_EVENTS_FD": str(writer)}
    done = subprocess.run(command, pass_fds=[writer], env=environment, capture_output=True, text=True, check=False)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        (run_dir.parent / "progress.jsonl").write_text(pipe.read())
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    return run_dir


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("two")
    assert run_job(digits_plan(run_dir, world_size=2)) == [(0, ""), (0, "")]
    return run_dir


def test_a_job_says_nothing_and_leaves_all_its_files(one_rank: Path) -> None:
    """The run directory is the only thing it talks to; its supervisor tidies up, once its end is written."""
    expected = {"plan.yaml", "metrics.jsonl", "summary.json", "confusion.json", "job.json", "best.ckpt", "last.ckpt"}
    assert expected | {"best-38.ckpt"} == {path.name for path in one_rank.rglob("*") if path.is_file()}


def test_every_step_is_in_the_journal_once(one_rank: Path) -> None:
    """Loss and rate of each, whatever the interval of writes."""
    steps = [point.step for point in journal(one_rank) if "train/loss" in point.metrics]
    assert list(range(1, 2 * 19 + 1)) == steps


def test_the_summary_says_what_was_reached(one_rank: Path) -> None:
    """Test metrics, best checkpoint, steps."""
    summary = read_plain(RunDir(one_rank).summary)
    assert (2, 38, False) == (summary["epochs"], summary["steps"], summary["diverged"])
    assert summary["test"]["test/acc"] > 0.7
    assert "checkpoints/best.ckpt" == summary["best"]["path"]


def test_the_confusion_matrix_counts_every_test_sample(one_rank: Path, two_ranks: Path) -> None:
    """Once, whatever the number of ranks."""
    for run_dir in (one_rank, two_ranks):
        matrix = read_plain(RunDir(run_dir).confusion)["matrix"]
        assert digits_plan(run_dir).data.num_test == sum(map(sum, matrix))  # type: ignore[union-attr]


def test_two_ranks_train_as_one_does(one_rank: Path, two_ranks: Path) -> None:
    """The same global batches give the same losses within rounding, and validation counts every sample once."""
    one, two = journal(one_rank), journal(two_ranks)
    assert [(p.step, set(p.metrics)) for p in one] == [(p.step, set(p.metrics)) for p in two]
    for a, b in zip(one, two, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4)


def test_mistakes_end_it_before_the_first_step(tmp_path: Path) -> None:
    """Exit status 2, no traceback, all of them at once, and the launcher is told."""
    overrides: dict[str, Any] = {"optimizer___target_": "torch.optim.SDG", "model__hiden": [3]}
    ended = run_warm(digits_plan(tmp_path, **overrides))
    assert [2] == ended.statuses
    assert "Traceback" not in ended.outputs[0]
    [error] = [event for event in ended.told if event["event"] == "failed"]
    assert error["kind"] == "config"
    for word in ("torch.optim.SDG", "'SGD'", "model.hiden", "'hidden'"):
        assert word in ended.outputs[0]
        assert word in error["message"]
    assert journal(tmp_path) == []


@pytest.mark.parametrize("world_size", [1, 2])
def test_sigterm_ends_all_ranks_after_a_step_with_a_checkpoint(tmp_path: Path, world_size: int) -> None:
    """Only the last rank hears the signal."""

    def stop_the_last(ranks: Ranks) -> None:
        wait_until(lambda: journal(tmp_path) or ranks.are_done(), "the first steps")
        assert not ranks.are_done()
        os.kill(ranks.processes[-1].pid, signal.SIGTERM)

    ended = run_warm(digits_plan(tmp_path, world_size, trainer__max_epochs=100_000), stop_the_last)
    assert [143] * world_size == ended.statuses, ended
    assert RunDir(tmp_path).last.is_file()
    assert RunDir(tmp_path).best.is_file()


def test_progress_comes_down_the_pipe(one_rank: Path) -> None:
    """A reader that never reads does not stop it; one that does sees the last step."""
    *_, last, end = map(json.loads, (one_rank.parent / "progress.jsonl").read_text().splitlines())
    assert {"event": "done", "rank": 0} == end
    assert (38, 38, 2) == (last["step"], last["steps"], last["epochs"])


def test_two_ranks_validate_the_end_together_and_say_where_it_was(tmp_path: Path) -> None:
    """`max_steps` within the first epoch of thirty: it is the first of one."""
    limits = {"trainer__max_epochs": 30, "trainer__max_steps": 5, "trainer__val_every_epochs": 3}
    ended = run_warm(digits_plan(tmp_path, world_size=2, **limits))
    assert [0, 0] == ended.statuses
    assert {(1, 1)} == {(event["epoch"], event["epochs"]) for event in ended.told if "epoch" in event}
    assert [5] == [point.step for point in journal(tmp_path) if "val/acc" in point.metrics]
    assert RunDir(tmp_path).best.is_file()


def test_a_job_dies_with_its_supervisor(tmp_path: Path) -> None:
    """The end of the inherited pipe ends it."""
    save_plan(digits_plan(tmp_path, trainer__max_epochs=100_000), tmp_path / "plan.yaml")
    reader, writer = os.pipe()
    job = subprocess.Popen(
        [sys.executable, "-m", "hpcexp.job", str(tmp_path)],
        pass_fds=[reader],
        env={**os.environ, "HPCEXP_SUPERVISOR_FD": str(reader)},
    )
    os.close(reader)
    os.close(writer)
    assert job.wait(timeout=60) == -signal.SIGKILL
