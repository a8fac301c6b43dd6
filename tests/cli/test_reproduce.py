"""`hpcexp reproduce`: the same comes out once more, or what differs is named, or what is missing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import FAST, Said, ended, only_run, start, wait_until, write_module

from hpcexp.errors import RunError
from hpcexp.files.atomic import sha256, write_json
from hpcexp.files.documents import convert, read_plain
from hpcexp.hardware.machine import num_cores
from hpcexp.plan import load_plan
from hpcexp.reproduce.environment import built, requirements
from hpcexp.reproduce.rerun import check_devices
from hpcexp.reproduce.workspace import scratch as a_place
from hpcexp.rundir import RunDir
from hpcexp.runs.records.lineage import EnvironmentFacts
from hpcexp.text.formatting import near

NET = """
    from {part} import WIDTH
    from hpcexp.models.mlp import MLP

    class Net(MLP):
        def __init__(self, in_shape, num_classes):
            super().__init__(in_shape, num_classes, hidden=[WIDTH])
"""
KILL = """
    import os, signal
    from pathlib import Path
    from pytorch_lightning import Callback

    class Kill(Callback):
        def __init__(self, mark):
            self.mark = Path(mark)

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4 and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
"""
STALL = """
    import os, time
    from pathlib import Path
    from pytorch_lightning import Callback

    class Stall(Callback):
        def on_train_start(self, *_):
            if mark := os.environ.get("STALLED"):
                Path(mark).touch()
                time.sleep(60)
"""
SHARDED = """
    from pathlib import Path
    from hpcexp.data.digits import Digits
    from hpcexp.data.source import DataFile, Tensors

    class Sharded(Digits):
        def files(self):
            return [DataFile(path, 1) for path in sorted(Path("shards").glob("*"))]

        def load(self, split):
            whole = super().load(split)
            scale = sum(float(file.path.read_text()) for file in self.files())
            return Tensors(whole.inputs * scale, whole.targets)
"""
MODEL = ("~model", "+model._target_=net_0.Net")


def git(place: Path, *arguments: str) -> str:
    """What git says."""
    me = ("-c", "user.name=Ada", "-c", "user.email=ada@localhost", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *me, *arguments], cwd=place, check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where reruns are made: nothing is left there when a test ends."""
    place = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert [] == list(place.glob("hpcexp-reproduce-*"))


@pytest.fixture
def checkout(project: Path) -> Path:
    """The project as a git repository with a commit."""
    git(project, "init", "-q")
    (project / ".gitignore").write_text("__pycache__/\nruns/\nshards/\nmark\n")
    write_module(project, "part_0", "WIDTH = 8")
    write_module(project, "net_0", NET.format(part="part_0"))
    write_module(project, "kill", KILL)
    write_module(project, "stall", STALL)
    write_module(project, "sharded_r", SHARDED)
    git(project, "add", ".")
    git(project, "commit", "-qm", "Begin")
    return project


@pytest.fixture
def run(project: Path, train: Callable[..., Said]) -> RunDir:
    """A run of a directory that is no repository."""
    write_module(project, "part_0", "WIDTH = 8")
    write_module(project, "net_0", NET.format(part="part_0"))
    assert 0 == train(*FAST, *MODEL).status
    return only_run(project)


def content(place: Path) -> dict[str, str]:
    """Every file below a directory, but for what git keeps of itself."""
    return {str(f): sha256(f) for f in place.rglob("*") if f.is_file() and not {".git", "__pycache__"} & {*f.parts}}


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
    """With the checkpoint of then, or not at all."""
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
    """But for hpcexp and the project; what pip has to say is told."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "My_Project"\n')
    versions = {"hpcexp": "0.1", "my-project": "1.0", "no-such-package": "1.0+cpu"}
    assert ["no-such-package==1.0+cpu"] == requirements(versions, tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    told = {"packages": versions, "python": {"version": ".".join(map(str, sys.version_info[:3]))}}
    with pytest.raises(RunError, match=r"(?s)cannot be built:\n.*no-such-package==1\.0\+cpu"):
        built(convert(told, EnvironmentFacts), tmp_path / "environment", tmp_path)
    with pytest.raises(RunError, match=r"there is no python1\.6 that works"):
        built(convert({**told, "python": {"version": "1.6.1"}}, EnvironmentFacts), tmp_path / "other", tmp_path)
