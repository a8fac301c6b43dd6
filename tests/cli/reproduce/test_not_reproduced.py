"""What is missing or cannot be reproduced is named, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkouts import MODEL, git
from helpers import FAST, Said, ended, only_run, start, wait_until, write_module

from hpcexp.errors import RunError
from hpcexp.files.atomic import sha256, write_json
from hpcexp.files.documents import convert, read_plain
from hpcexp.plan import load_plan
from hpcexp.reproduce.environment import built, requirements
from hpcexp.reproduce.rerun import check_devices
from hpcexp.reproduce.workspace import scratch as a_place
from hpcexp.rundir import RunDir
from hpcexp.runs.records.lineage import EnvironmentFacts


def test_a_commit_or_patch_that_is_gone_is_missed(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """With how to get it; the present code does where it is asked for."""
    (checkout / "notes.txt").write_text("x\n")
    assert 0 == train(*FAST, *MODEL).status
    patch = only_run(checkout).lineage / "changes.patch"
    patch.write_text(f"{patch.read_text()}\n")
    said = hpcexp("reproduce", "last")
    assert 2 == said.status
    assert f"{patch} was changed since the run" in said.err
    nonsense = patch.read_text().replace("new file mode 100644", "old mode 100644\nnew mode 100755")
    patch.write_text(nonsense)
    code = read_plain(patch.with_name("code.json"))
    write_json(patch.with_name("code.json"), {**code, "patch": {"file": patch.name, "sha256": sha256(patch)}})
    said = hpcexp("reproduce", "last", "--trust")
    assert 2 == said.status
    assert "does not apply to its commit:\n" in said.err
    said = hpcexp("reproduce", "last", "--trust", "--as-is", "--steps", "2")
    assert 0 == said.status
    assert " without its patch; 1 rank" in said.out
    commit = git(checkout, "rev-parse", "HEAD").strip()
    shutil.rmtree(checkout / ".git")
    git(checkout, "init", "-q")
    said = hpcexp("reproduce", "last", "--trust")
    assert 2 == said.status
    assert f"The commit {commit} of digits_mlp/" in said.err
    assert f"is gone: {checkout} has no such commit.\nFix: fetch it from a clone" in said.err
    said = hpcexp("reproduce", "last", "--trust", "--as-is", "--steps", "2")
    assert 0 == said.status
    assert "again: the present code (--as-is); 1 rank" in said.out


def test_without_git_the_present_code_has_to_be_the_same(
    run: RunDir, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """By the digests of its files, unless another is asked for, which the verdict tells."""
    said = hpcexp("reproduce", "last", "--steps", "2")
    assert (0, "") == (said.status, said.err), said
    assert "not from a git repository: the present code" in said.out
    write_module(project, "part_0", "WIDTH = 9")
    said = hpcexp("reproduce", "last")
    assert 2 == said.status
    assert re.search(r"1 of \d+ files differ\.\n  part_0\.py  ", said.err)
    said = hpcexp("reproduce", "last", "--as-is", "--steps", "2")
    assert 1 == said.status
    assert "Diverged at step 1: train/loss " in said.out
    assert "Known to differ: code (part_0.py " in said.out


def test_what_cannot_be_reproduced_says_why(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """Another kind of device, more of them, no lineage, no step."""
    plan = load_plan(run.plan)
    with pytest.raises(RunError, match="The run had 1 GPU, a rank on each; this machine has no GPU"):
        check_devices(replace(plan, topology=replace(plan.topology, accelerator="cuda")))
    with pytest.raises(RunError, match="Fix: a machine with 4096 CPU cores"):
        check_devices(replace(plan, topology=replace(plan.topology, device_ids=tuple(range(4096)))))
    shutil.rmtree(run.lineage)
    said = hpcexp("reproduce", "last")
    assert 2 == said.status
    assert "has no lineage/code.json" in said.err
    assert 0 == hpcexp("train", *FAST, "launch=dry", "seed=2").status
    said = hpcexp("reproduce", f"{run.path.parent}/debug=fast-s2-{said_signature(run)}")
    assert 2 == said.status
    assert "never finished a step (planned)" in said.err


def said_signature(run: RunDir) -> str:
    """The other run's."""
    [other] = [path for path in run.path.parent.iterdir() if path.is_dir() and path != run.path]
    return other.name.rpartition("-")[2]


def test_ctrl_c_leaves_nothing_behind(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither processes nor the worktree."""
    asked = ("callbacks.stall._target_=stall.Stall", "launch.grace_s=0")
    assert 0 == train(*FAST, *asked).status
    mark = checkout / "mark"
    monkeypatch.setenv("STALLED", str(mark))

    def interrupt() -> None:
        wait_until(mark.exists, "the rerun")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    said = hpcexp("reproduce", "last")
    thread.join()
    assert 130 == said.status, said
    assert "Stopped" in said.err
    assert 1 == len(git(checkout, "worktree", "list").splitlines())


def test_what_a_killed_command_left_goes_with_the_next(
    checkout: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """The worktree, too, that git would list for ever."""
    asked = ("callbacks.stall._target_=stall.Stall", "launch.grace_s=0")
    assert 0 == train(*FAST, *asked).status
    mark = checkout / "mark"
    process = start("reproduce", "last", cwd=checkout, STALLED=str(mark), TMPDIR=tempfile.gettempdir())
    wait_until(mark.exists, "the rerun")
    process.kill()
    ended(process)
    assert 2 == len(git(checkout, "worktree", "list").splitlines())
    assert 0 == hpcexp("reproduce", "last").status
    assert 1 == len(git(checkout, "worktree", "list").splitlines())


def test_a_place_of_another_machine_or_a_kept_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks of another machine may not be seen here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    holders = {"far": "process 1 on elsewhere", "left": f"process 1 on {socket.gethostname()}", "kept": None}
    for name, holder in holders.items():
        (tmp_path / f"hpcexp-reproduce-{name}").mkdir()
        if holder:
            (tmp_path / f"hpcexp-reproduce-{name}" / ".lock").write_text(holder)
    with a_place(keep=False):
        pass
    assert ["hpcexp-reproduce-far", "hpcexp-reproduce-kept"] == sorted(path.name for path in tmp_path.iterdir())


def test_the_environment_is_built_of_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for hpcexp and the project; pip's message is shown."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "My_Project"\n')
    versions = {"hpcexp": "0.1", "my-project": "1.0", "no-such-package": "1.0+cpu"}
    assert ["no-such-package==1.0+cpu"] == requirements(versions, tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    told = {"packages": versions, "python": {"version": ".".join(map(str, sys.version_info[:3]))}}
    with pytest.raises(RunError, match=r"(?s)cannot be built:\n.*no-such-package==1\.0\+cpu"):
        built(convert(told, EnvironmentFacts), tmp_path / "environment", tmp_path)
    with pytest.raises(RunError, match=r"there is no python1\.6 that works"):
        built(convert({**told, "python": {"version": "1.6.1"}}, EnvironmentFacts), tmp_path / "other", tmp_path)
