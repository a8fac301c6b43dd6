"""Code that a run of somebody else's names runs after a word of the user's, and not before."""

from __future__ import annotations

import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
import yaml
from forked import command
from helpers import FAST, WARM, Said, environment, only_run, wait_until, write_module
from torch import Tensor, ones, zeros

from hpcexp.cli.shared.trust import RUNS_CODE
from hpcexp.errors import RunError
from hpcexp.redaction import filled
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.shards import gathered

MODEL = """
    import os, pathlib
    import torch
    pathlib.Path(os.environ.get("MARKER", os.devnull)).write_text("ran")

    class Model(torch.nn.Module):
        def __init__(self, in_shape, num_classes):
            super().__init__()
            self.layer = torch.nn.Linear(64, num_classes)

        def forward(self, x):
            return self.layer(x.flatten(1))
"""
VERBS = (
    ("test", "RUN"),
    ("predict", "RUN", "digit.png"),
    ("export", "RUN", "-o", "m.pt2"),
    ("promote", "RUN", "--to", "digits"),
    ("reproduce", "RUN", "--steps", "1"),
)


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a model of its own, and a run of it."""
    project = tmp_path_factory.mktemp("author")
    write_module(project, "model_t", MODEL)
    said = command("train", *FAST, WARM, "~model", "+model._target_=model_t.Model", cwd=project)
    assert (0, "") == (said.status, said.err), said
    return project


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that code of the run makes when it runs."""
    return tmp_path / "marker"


def tried(argv: tuple[str, ...], run: RunDir, cwd: Path, marker: Path, *more: str) -> Said:
    asked = [str(run.path) if word == "RUN" else word for word in argv]
    return command(*asked, *more, cwd=cwd, MARKER=str(marker))


@pytest.mark.parametrize("argv", VERBS, ids=lambda argv: argv[0])
def test_a_run_of_another_project_runs_nothing(
    author: Path, project: Path, marker: Path, argv: tuple[str, ...]
) -> None:
    """Exit status 2; why, whose it is, and what to do."""
    run = only_run(author)
    said = tried(argv, run, project, marker)
    assert 2 == said.status, said
    assert f"its project is {author}, and this is {project}" in said.err
    assert f"Fix: read {run.plan} and the code in {author} first, then repeat with --trust." in said.err
    assert "Traceback" not in said.err
    assert not marker.exists()


def test_it_runs_with_trust(author: Path, project: Path, marker: Path) -> None:
    """The same command, once the user has said so."""
    said = tried(("test", "RUN"), only_run(author), project, marker, "--trust")
    assert (0, True) == (said.status, marker.exists()), said


def test_ones_own_run_is_used_at_once(author: Path, tmp_path: Path, marker: Path) -> None:
    """Also a copy of it that was put back, and from a directory below the project."""
    said = tried(("test", "RUN"), only_run(author), author, marker)
    assert (0, "", True) == (said.status, said.err, marker.exists()), said
    copy = RunDir(Path(shutil.copytree(only_run(author).path, tmp_path / "copy")))
    (author / "below").mkdir()
    said = tried(("test", "RUN"), copy, author / "below", marker)
    assert (0, "") == (said.status, said.err), said


def _target(value: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["config"].update(value)


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "a command": _target({"model": {"_target_": "os.system", "command": "touch $MARKER"}}),
    "a process": _target({"model": {"_target_": "subprocess.Popen", "args": "touch $MARKER", "shell": True}}),
    "an expression": _target({"model": {"_target_": "builtins.exec", "_args_": ["open('marker', 'w')"]}}),
    "a partial": _target({"model": {"_target_": "functools.partial", "_args_": [{"_target_": "os.system"}]}}),
    "data": lambda plan: plan["config"]["data"].update({"_target_": "os.system", "command": "touch $MARKER"}),
    "a callback": _target({"callbacks": {"x": {"_target_": "os.system", "command": "touch $MARKER"}}}),
    "a module of its own": _target({"model": {"_target_": "model_t.Model"}}),
}


@pytest.mark.parametrize(
    ("argv", "name"),
    [*((VERBS[0], name) for name in FORGED), *((argv, "a command") for argv in VERBS[1:])],
    ids=lambda of: of if isinstance(of, str) else of[0],
)
def test_a_plan_that_says_it_is_of_this_project_is_not_believed(
    author: Path,
    project: Path,
    marker: Path,
    argv: tuple[str, ...],
    name: str,
) -> None:
    """Text and all; with the mark of another run, and with one that was made up."""
    write_module(project, "model_t", MODEL)
    place = project / "runs" / "digits_mlp" / "base-s1-12345678"
    run = RunDir(Path(shutil.copytree(only_run(author).path, place)))
    plan = yaml.safe_load(run.plan.read_text().replace(str(author), str(project)))
    FORGED[name](plan)
    run.plan.write_text(yaml.safe_dump(plan))
    said = tried(argv, run, project, marker)
    assert (2, True) == (said.status, "plan.yaml: not marked as made by you, or changed since" in said.err), said
    assert not marker.exists()
    assert not (project / "marker").exists()
    run.mark.write_text(json.dumps({"plan.yaml": "0" * 64}))
    assert (2, False) == (tried(argv, run, project, marker).status, marker.exists())


@pytest.mark.parametrize("override", ["hydra.searchpath=[pkg://model_t]", "data._target_=model_t.Model"])
def test_why_asks_nothing_and_runs_nothing(author: Path, project: Path, marker: Path, override: str) -> None:
    """It plans what the run's overrides ask for here, and imports no module that they name."""
    write_module(project, "model_t", MODEL)
    run = RunDir(Path(shutil.copytree(only_run(author).path, project / "run")))
    plan = yaml.safe_load(run.plan.read_text())
    run.plan.write_text(yaml.safe_dump({**plan, "overrides": [override]}))
    said = command("why", "run", cwd=project, MARKER=str(marker))
    assert "Traceback" not in said.err
    assert not marker.exists(), said


@pytest.mark.parametrize("name", ["lineage/code.json", "lineage/environment.json"])
def test_what_would_be_restored_is_held_against_the_mark(author: Path, tmp_path: Path, name: str) -> None:
    """The commit, the patch and the packages that `reproduce` makes code of."""
    run = RunDir(Path(shutil.copytree(only_run(author).path, tmp_path / "copy")))
    file = run.path / name
    file.write_text(file.read_text() + " ")
    said = command("reproduce", str(run.path), "--env", cwd=author)
    assert (2, True) == (said.status, f"{name}: not marked as made by you, or changed since" in said.err), said
    assert 0 == command("test", str(run.path), cwd=author).status


def test_secrets_name_no_code() -> None:
    """`.secrets` has no place in what is executed but where the plan has something masked, and no structure there."""
    config = {"model": {"_target_": "a.B", "password": "***"}}
    assert {"model": {"_target_": "a.B", "password": "x"}} == filled(
        config, {"model._target_": "os.system", "model.password": "x"}
    )
    assert config == filled(config, {"model.password": {"_target_": "os.system"}})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run as another user")
def test_a_run_of_another_user_belongs_to_him(author: Path, project: Path, marker: Path) -> None:
    """Whatever is in it; a key that others may read is no key."""
    run = RunDir(Path(shutil.copytree(only_run(author).path, project / "run")))
    for path in (run.path, run.plan):
        os.chown(path, 65534, 65534)
    said = tried(("test", "RUN"), run, author, marker)
    assert (2, False) == (said.status, marker.exists()), said
    assert "plan.yaml, the directory: not yours" in said.err
    assert "it belongs to nobody" in said.err


def test_a_key_that_others_can_read_marks_nothing(project: Path, marker: Path) -> None:
    """Nor one of another length; without a home, runs are as those of others."""
    state = project / "state"
    write_module(project, "model_t", MODEL)
    asked = ("train", *FAST, WARM, "~model", "+model._target_=model_t.Model")
    assert 0 == command(*asked, cwd=project, XDG_STATE_HOME=str(state)).status
    key = state / "hpcexp" / "key"
    assert (32, 0o600) == (key.stat().st_size, key.stat().st_mode & 0o777)
    argv = ("test", "last")
    assert 0 == command(*argv, cwd=project, XDG_STATE_HOME=str(state)).status
    key.chmod(0o644)
    assert 2 == command(*argv, cwd=project, XDG_STATE_HOME=str(state)).status
    key.chmod(0o600)
    content = key.read_bytes()
    for other in (content[:-1], bytes(32)):
        key.write_bytes(other)
        assert 2 == command(*argv, cwd=project, XDG_STATE_HOME=str(state)).status


@pytest.mark.parametrize(("answer", "status", "ran"), [("y\n", 0, True), ("n\n", 2, False), ("\n", 2, False)])
def test_at_a_terminal_it_asks(author: Path, project: Path, marker: Path, answer: str, status: int, ran: bool) -> None:
    """No is the default."""
    leader, open_run = pty.openpty()
    argv = [sys.executable, "-m", "hpcexp", "test", str(only_run(author).path)]
    env = environment(MARKER=str(marker))
    process = subprocess.Popen(argv, cwd=project, env=env, stdin=open_run, stdout=open_run, stderr=open_run)
    os.close(open_run)
    text = b""
    while b"Run it? [y/N]" not in text:
        text += os.read(leader, 4096)
    assert b"it belongs to" in text
    assert not marker.exists()
    os.write(leader, answer.encode())
    wait_until(lambda: process.poll() is not None, "the command ends")
    assert (status, ran) == (process.returncode, marker.exists()), text


def test_help_says_that_it_runs_code(hpcexp: Callable[..., Said]) -> None:
    """Of each verb that does."""
    for verb, *_ in VERBS:
        said = " ".join(hpcexp(verb, "--help").out.split())
        assert RUNS_CODE in said, verb
        assert "--trust" in said


class Command:
    """What a pickle may have in it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_checkpoint_is_data(tmp_path: Path, marker: Path) -> None:
    """Its index is a pickle, and torch would load an entry that is no tensor as another."""
    about = {"shape": [3], "dtype": zeros(1).dtype, "hpcexp.shard": "0"}
    rest = {"state_dict": {"w": about}, "beside": {"shards-1/.metadata": [0, 0]}}
    place = tmp_path / "shards-1"
    dcp.save({"0": ones(3)}, checkpoint_id=place)
    read: Tensor = gathered(rest, tmp_path)["state_dict"]["w"]
    assert [1.0, 1.0, 1.0] == read.tolist()
    (place / ".metadata").write_bytes(pickle.dumps(Command(marker)))
    with pytest.raises(RunError, match=r"\.metadata is damaged: it is no index of a checkpoint \(it names "):
        gathered(rest, tmp_path)
    shutil.rmtree(place)
    dcp.save({"0": Command(marker)}, checkpoint_id=place)
    marker.unlink(missing_ok=True)
    with pytest.raises(RunError, match="BytesStorageMetadata"):
        gathered(rest, tmp_path)
    assert not marker.exists()


def test_git_runs_no_program_that_a_checkout_names(project: Path, marker: Path) -> None:
    """Neither a monitor of files nor a hook of a directory that came with its .git."""
    program = project / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=project, check=True)

    git("init", "--quiet")
    git("add", "program")
    git("commit", "--quiet", "-m", "first")
    git("config", "core.fsmonitor", str(program))
    git("config", "core.hooksPath", str(project / "hooks"))
    (project / "hooks").mkdir()
    shutil.copy(program, project / "hooks" / "post-index-change")
    (project / "new.txt").write_text("new")
    said = command("train", *FAST, WARM, "launch=dry", cwd=project)
    assert 0 == said.status, said
    assert (only_run(project).lineage / "changes.patch").exists()
    assert not marker.exists()


def test_programs_of_our_own_import_nothing_of_the_directory(project: Path, marker: Path) -> None:
    """A module that is named as one of ours is the project's alone."""
    evil = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nraise SystemExit(3)\n"
    for name in ("torch", "mlflow", "psutil"):
        (project / f"{name}.py").write_text(evil)
    argv = [sys.executable, "-P", "-m", "hpcexp", "doctor"]
    done = subprocess.run(argv, cwd=project, env=environment(), capture_output=True, text=True, check=False)
    assert "torch" in done.stdout, done
    assert not marker.exists()


LAUNCHER = """
import os, pathlib
from hpcexp.launch.launchers.local import Local
pathlib.Path(os.environ.get("MARKER", os.devnull)).write_text("ran")

class Own(Local):
    pass
"""
LAUNCHERS = {
    "a module of its own": {"_target_": "launcher_t.Own"},
    "a command": {"_target_": "os.system", "command": "touch $MARKER"},
    "a command that hpcexp imports": {"_target_": "hpcexp.files.atomic.os.system", "command": "touch $MARKER"},
    "a class that hpcexp imports": {
        "_target_": "hpcexp.launch.launchers.torchrun_agent.subprocess.Popen",
        "args": "touch $MARKER",
        "shell": True,
    },
}


def forged_launch(author: Path, place: Path, launch: dict[str, Any]) -> RunDir:
    """A copy of the author's run that claims to run on another machine by this launcher, and is silent since 1970."""
    run = RunDir(Path(shutil.copytree(only_run(author).path, place / "runs" / "digits_mlp" / "copy")))
    plan = yaml.safe_load(run.plan.read_text())
    plan["config"]["launch"] |= launch
    run.plan.write_text(yaml.safe_dump(plan, sort_keys=False))
    status = json.loads(run.status.read_text())
    run.status.write_text(json.dumps({**status, "state": "running", "host": "elsewhere", "ended": None}))
    run.beat.parent.mkdir()
    run.beat.touch()
    os.utime(run.beat, (0, 0))
    return run


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launcher_of_somebody_else_is_not_made(author: Path, project: Path, marker: Path, name: str) -> None:
    """Neither to cancel the job, without a word of the user's, nor to find out whether it runs."""
    write_module(project, "launcher_t", LAUNCHER)
    run = forged_launch(author, project, LAUNCHERS[name])
    said = tried(("cancel", "RUN"), run, project, marker)
    assert (2, False) == (said.status, marker.exists()), said
    assert f"Fix: read {run.plan} and the code in {author} first, then repeat with --trust." in said.err
    for argv in (("runs",), ("show", "RUN")):
        said = tried(argv, run, project, marker)
        assert (0, False) == (said.status, marker.exists()), said
        assert "running" in said.out


def test_the_launcher_of_somebody_else_cancels_with_trust(author: Path, project: Path, marker: Path) -> None:
    """The same command, once the user has said so; what is no launcher is not even then called."""
    write_module(project, "launcher_t", LAUNCHER)
    run = forged_launch(author, project, LAUNCHERS["a command"])
    said = tried(("cancel", "RUN"), run, project, marker, "--trust")
    assert (2, False) == (said.status, marker.exists()), said
    assert "launch._target_=os.system: system is not a launcher" in said.err
    shutil.rmtree(run.path)
    run = forged_launch(author, project, LAUNCHERS["a module of its own"])
    run.beat.touch()
    said = tried(("cancel", "RUN"), run, project, marker, "--trust")
    assert (0, True, True) == (said.status, marker.exists(), run.cancel.exists()), said


def test_code_of_hpcexp_that_is_no_launcher_is_not_called(author: Path, project: Path, marker: Path) -> None:
    """It is hpcexp's, and needs no trust; called with what a stranger chose, it could do harm."""
    launch = {"_target_": "hpcexp.files.atomic.write_atomic", "path": str(marker), "content": "ran"}
    said = tried(("cancel", "RUN"), forged_launch(author, project, launch), project, marker)
    assert (2, False) == (said.status, marker.exists()), said
    assert "write_atomic is not a launcher: it lacks" in said.err
