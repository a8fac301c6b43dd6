"""`hpcexp reproduce`: the same comes out once more, or what differs is named."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkouts import MODEL, NET, content, git
from helpers import FAST, Said, only_run, write_module

from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.hardware.machine import num_cores
from hpcexp.rundir import RunDir
from hpcexp.text.formatting import near


def test_a_clean_run_is_reproduced_to_the_bit(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """In a worktree that is gone then; run, checkout and index stay as they are, whatever was edited since."""
    assert 0 == train(*FAST, *MODEL).status
    write_module(checkout, "part_0", "WIDTH = 9")
    before = content(checkout)
    said = hpcexp("reproduce", "last")
    assert (0, "") == (said.status, said.err), said
    assert f"again: commit {git(checkout, 'rev-parse', 'HEAD')[:12]}; 1 rank on cpu\n" in said.out
    assert "Identical: weights and all 15 values of 7 metrics, bit for bit." in said.out
    assert "differs" not in said.out
    assert before == content(checkout)
    assert " M part_0.py\n" == git(checkout, "status", "--porcelain")
    assert 1 == len(git(checkout, "worktree", "list").splitlines())


def test_a_dirty_tree_is_reproduced_with_its_untracked_module(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """Though both are gone from the checkout, which has moved on."""
    write_module(checkout, "part_1", "WIDTH = 16")
    write_module(checkout, "net_0", NET.format(part="part_1"))
    assert 0 == train(*FAST, *MODEL).status
    git(checkout, "checkout", "-q", "net_0.py")
    (checkout / "part_1.py").unlink()
    git(checkout, "commit", "-qm", "Go on", "--allow-empty")
    said = hpcexp("reproduce", "last", "--keep")
    assert (0, "") == (said.status, said.err), said
    assert "and its patch" in said.out
    assert "Identical: weights and all" in said.out
    [kept] = Path(tempfile.gettempdir()).glob("hpcexp-reproduce-*")
    assert f"; git worktree remove --force {near(kept / 'code')} removes the code\n" in said.out
    assert "part_1" in (kept / "code" / "net_0.py").read_text()
    assert only_run(kept).summary.is_file()
    git(checkout, "worktree", "remove", "--force", str(kept / "code"))
    shutil.rmtree(kept)


@pytest.mark.skipif(num_cores() < 2, reason="two ranks need two cores")
def test_two_ranks_are_reproduced_to_the_bit(
    run: RunDir, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """As many as there were. The first steps have the schedule of all."""
    assert 0 == train(*FAST, "hardware=cpu", "hardware.devices=2", "scheduler=cosine", "scheduler.warmup=0.5").status
    said = hpcexp("reproduce", "last")
    assert (0, "") == (said.status, said.err), said
    assert "2 ranks on cpu" in said.out
    assert "Identical: weights and all 15 values" in said.out
    said = hpcexp("reproduce", "last", "--steps", "3")
    assert (0, "") == (said.status, said.err), said
    assert "2 ranks on cpu, up to step 3\n" in said.out
    assert "Identical: all 6 values of 2 metrics, bit for bit." in said.out


def test_another_seed_in_the_plan_is_named(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """With the first value that differs."""
    run.plan.write_text(run.plan.read_text().replace("\n  seed: 1\n", "\n  seed: 2\n"))
    said = hpcexp("reproduce", "last", "--trust")
    assert (1, "") == (said.status, said.err), said
    assert "  seed  1 → 2\n" in said.out
    assert "Diverged at step 1: train/loss " in said.out
    assert "Known to differ: config (seed 1 → 2); record (plan.yaml " in said.out


def test_data_that_changed_is_named_and_data_that_is_gone_is_missed(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """By its files, which lie outside of git."""
    (checkout / "shards").mkdir()
    for name in ("a", "b"):
        (checkout / "shards" / name).write_text("1.0")
    assert 0 == train(*FAST, "data._target_=sharded_r.Sharded", *MODEL).status
    said = hpcexp("reproduce", "last")
    assert (0, "") == (said.status, said.err), said
    assert "data       the same (3 digests)" in said.out
    (checkout / "shards" / "b").write_text("1.1")
    said = hpcexp("reproduce", "last", "--steps", "2")
    assert (1, "") == (said.status, said.err), said
    assert "Diverged at step 1: train/loss " in said.out
    assert "Known to differ: data (b " in said.out
    for number, name in enumerate(("b", "a"), 1):
        (checkout / "shards" / name).unlink()
        said = hpcexp("reproduce", "last")
        assert 2 == said.status
        assert "The data of digits_mlp/" in said.err
        assert f"{number} of 2 files gone.\n  {name}  " in said.err


def test_another_version_of_a_package_is_named(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """Also where nothing comes of it."""
    told = read_plain(run.lineage / "environment.json")
    now = told["packages"]["numpy"]
    write_json(run.lineage / "environment.json", {**told, "packages": {**told["packages"], "numpy": "0.1"}})
    said = hpcexp("reproduce", "last", "--steps", "2")
    assert (0, "") == (said.status, said.err), said
    assert f"  numpy  0.1 → {now}\n" in said.out
    differing = f"packages (numpy 0.1 → {now}); record (lineage/environment.json"
    assert f"Identical although these differ: {differing}" in said.out


def test_a_lost_checkpoint_is_named(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """The weights are the same as the run's by its summary alone."""
    run.best.unlink()
    said = hpcexp("reproduce", "last", "--steps", "2")
    assert (0, "") == (said.status, said.err), said
    assert re.search(r"^  checkpoints/best.ckpt  [0-9a-f]{12} → nothing$", said.out, re.MULTILINE)


def test_rounding_is_told_from_another_result(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """What is tolerated, and how far apart values are; another weight alone is no rounding."""
    values = run.journal.read_text()
    first = values.split('"train/loss":')[1].split(",")[0]
    run.journal.write_text(values.replace(first, str(float(first) * (1 + 1e-6)), 1))
    said = hpcexp("reproduce", "last", "--steps", "2")
    assert (0, "") == (said.status, said.err), said
    assert "Within tolerance: no value is further apart than 1e-05 of it; the furthest 1.0e-06" in said.out
    assert 1 == hpcexp("reproduce", "last", "--steps", "2", "--rtol", "1e-7").status
    assert [2, 2] == [hpcexp("reproduce", "last", "--rtol", rtol).status for rtol in ("nan", "-1")]
    run.journal.write_text(values)
    write_json(run.summary, {**read_plain(run.summary), "weights_sha256": "0" * 64})
    said = hpcexp("reproduce", "last")
    assert 1 == said.status
    assert "Diverged: every logged value is identical" in said.out


def test_a_killed_run_is_reproduced_as_far_as_it_came_and_once_it_has_gone_on(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """The attempts of a run are one training."""
    asked = ("checkpoint.every_steps=1", "callbacks.kill._target_=kill.Kill", f"callbacks.kill.mark={checkout}/mark")
    assert 1 == train(*FAST, *asked, *MODEL).status
    said = hpcexp("reproduce", "last")
    assert (0, "") == (said.status, said.err), said
    assert ", up to step 3\n" in said.out
    assert "Identical: all 6 values of 2 metrics, bit for bit." in said.out
    assert 0 == train(*FAST, *asked, *MODEL).status
    assert 2 == read_plain(only_run(checkout).status)["attempt"]
    said = hpcexp("reproduce", "last")
    assert (0, "") == (said.status, said.err), said
    assert "Identical: weights and all 15 values of 7 metrics, bit for bit." in said.out


@pytest.mark.skipif(num_cores() < 2, reason="two ranks need two cores")
def test_a_run_that_began_with_another_is_reproduced_from_there(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """With the checkpoint that it resumed from, or not at all."""
    kill = ("callbacks.kill._target_=kill.Kill", f"callbacks.kill.mark={checkout}/mark")
    asked = (*FAST, "hardware=cpu", "checkpoint.every_steps=1", *kill, *MODEL)
    assert 1 == train(*asked).status
    first = only_run(checkout)
    assert 0 == train(*asked, "hardware.devices=2", f"run.resume_from={first.path.name[-8:]}").status
    said = hpcexp("reproduce", "last")
    assert (0, "") == (said.status, said.err), said
    assert "Identical: weights and all 15 values of 7 metrics, bit for bit." in said.out
    os.replace(first.previous, first.last)
    said = hpcexp("reproduce", "last")
    assert 2 == said.status
    assert "(run.resume_from), which is not there any more" in said.err
