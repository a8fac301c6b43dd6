"""Every mistake a user can make: named before anything starts, with its cause and a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import HEAVY, Said, TrainedRun, command, python, write_conf, write_module

OWN_MODEL = """
    from torch import nn

    class Net(nn.Sequential):
        def __init__(self, num_classes: int) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "a misspelt key": (["trainer.max_epoch=3"], ["trainer.max_epoch", "no key", "'max_epochs'"]),
    "a misspelt key with +": (["+trainer.max_epoch=3"], ["trainer.max_epoch", "no key", "'max_epochs'"]),
    "a misspelt section": (["optimzer.lr=1"], ["optimzer.lr=1", "no key 'optimzer'", "'optimizer'"]),
    "a misspelt section with +": (["+optimzer.lr=1"], ["no key 'optimzer'", "'optimizer'"]),
    "a misspelt group": (["optimizr=sgd"], ["optimizr=sgd", "'optimizer'"]),
    "a misspelt group with +": (["+optimizr=sgd"], ["optimizr", "'optimizer'"]),
    "a missing option": (["optimizer=sdg"], ["optimizer=sdg", "no option 'sdg'", "'sgd'", "adam, adamw, sgd"]),
    "a group that is null": (["model=null"], ["model._target_: it is needed.", "model=OPTION"]),
    "a word where a number belongs": (["trainer.max_epochs=many"], ["trainer.max_epochs=many", "a whole number"]),
    "a fraction where a whole number belongs": (["seed=1.5"], ["seed=1.5", "a whole number"]),
    "a word where yes or no belongs": (["trainer.compile=maybe"], ["trainer.compile=maybe", "true or false"]),
    "a word for the learning rate": (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
    "null where a value is needed": (["trainer.max_epochs=null"], ["trainer.max_epochs=null", "null"]),
    "a negative learning rate": (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    "an empty batch": (["data.global_batch_size=0"], ["data.global_batch_size=0", "at least 1"]),
    "a seed too large": (["seed=4294967296"], ["seed=4294967296", "at most 4294967295"]),
    "a word that is no option": (["trainer.precision=16mixed"], ["trainer.precision=16mixed", "'16-mixed'"]),
    "a value left open": (["data=images_folder"], ["data.root", "required", "Fix: data.root="]),
    "a batch that does not divide": (
        ["hardware=cpu", "hardware.devices=1", "trainer.accumulate_grad_batches=3"],
        ["data.global_batch_size=64", "3 accumulated batches", "data.global_batch_size=63, or 66"],
    ),
    "a batch larger than the data": (["data.global_batch_size=2000"], ["1259 training samples", "Fix: data.global"]),
    "more processes than cores": (
        ["hardware=cpu", "hardware.devices=4096"],
        ["devices=4096", "cores", "Fix: hardware"],
    ),
    "no device at all": (["hardware.devices=0"], ["hardware.devices=0", "at least one"]),
    "devices without end": (["hardware=cpu", "hardware.devices=1e400"], ["hardware.devices=inf", "a finite one"]),
    "a share below one": (["hardware=cpu", "hardware.share=-1"], ["hardware.share=-1", "at least 1"]),
    "a word for the strategy": (["strategy=ddp", "strategy.static_graph=maybe"], ["static_graph=maybe", "true or"]),
    "a device twice": (["hardware=cpu", "hardware.devices=[0,0]"], ["[0,0]", "twice"]),
    "a GPU where there is none": (["hardware=gpu"], ["hardware.accelerator=cuda", "no GPU", "Fix: hardware=cpu"]),
    "several nodes": (["hardware.num_nodes=2"], ["hardware.num_nodes=2", "this machine only", "Fix:"]),
    "a precision the device lacks": (["trainer.precision=16-mixed"], ["needs a GPU", "trainer.precision=bf16-mixed"]),
    "an unwritable place": (["run.root=a_file/runs"], ["run.root=", "a_file is a file", "Fix: run.root="]),
    "the file store of MLflow": (["tracking.uri=file:///tmp/mlruns"], ["tracking.uri=file", "Fix:", "sqlite:///"]),
    "an unknown kind of store": (["tracking.uri=htp://host"], ["tracking.uri=htp://host", "'http'"]),
    "a target that does not exist": (["optimizer._target_=torch.optim.SDG"], ["no 'SDG' in torch.optim", "'SGD'"]),
    "a module that does not exist": (["model._target_=nowhere.Net"], ["model._target_", "no module 'nowhere'"]),
    "an argument the target does not take": (["model.hiden=[3]"], ["model.hiden", "no argument", "'hidden'"]),
    "an argument of another type": (["model.dropout=some"], ["model.dropout=some", "a number"]),
    "an argument of the loss": (["task.loss.label_smothing=0.1"], ["task.loss.label_smothing", "'label_smoothing'"]),
    "data that is not there": (["data=images_folder", "data.root=/no/pictures"], ["data.root=/no/pictures", "Fix:"]),
    "a metric that is not measured": (["trainer.monitor=val/accc"], ["trainer.monitor=val/accc", "'val/acc'", "Fix:"]),
    "classes asked of numbers": (["data=synthetic", "data.num_classes=null"], ["task.metrics=acc", "Fix: task=regr"]),
    "numbers asked of classes": (["task=regression"], ["task.metrics=mse", "Fix: task=classification"]),
    "a metric that does not exist": (["task.metrics=[acc,top6]"], ["task.metrics=top6", "'top5'"]),
    "a decay that never moves": (["trainer.ema_decay=1"], ["trainer.ema_decay=1", "below 1"]),
    "no strategy": (["~strategy"], ["strategy.name", "needed"]),
    "no model": (["~model"], ["model._target_", "needed"]),
    "no batch size": (["~data.global_batch_size"], ["data.global_batch_size", "needed"]),
    "a callback without a target": (["callbacks.x.every=5"], ["callbacks.x._target_", "needed"]),
    "a name that is no directory's": (["name=my/run"], ["name=my/run", "letters", "Fix: name="]),
    "several values for one run": (["seed=1,2"], ["seed=1,2", "-m"]),
    "no override at all": (["lr"], ["lr: not an override", "Fix:", "key=value"]),
    "a value that cannot be read": (["notes=[1"], ["notes=[1", "quote"]),
}

HYDRAS_WORDS = ("To append", "Could not override", "Could not append", "HYDRA_FULL_ERROR", "Traceback", "You may")


@dataclass(frozen=True)
class Told:
    """What a process that made every mistake was told, and what it left behind."""

    said: dict[str, Said]
    imported: list[str]
    files: list[str]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """All of MISTAKES, one after the other in one process that does nothing else."""
    place = tmp_path_factory.mktemp("mistakes")
    (place / "a_file").touch()
    code = f"""
    import contextlib, io, json, os, sys
    from hpcexp.cli.main import run
    said = {{}}
    for name, overrides in { ({name: overrides for name, (overrides, _) in MISTAKES.items()})!r}.items():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(["train", *overrides])
        said[name] = status, out.getvalue(), err.getvalue()
    print(json.dumps([said, sorted(set({HEAVY!r}) & set(sys.modules)), os.listdir()]))
    """
    answer = python(code, place)
    assert 0 == answer.status, answer.err
    said, imported, files = json.loads(answer.out)
    return Told({name: Said(*parts) for name, parts in said.items()}, imported, files)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(told: Told, mistake: str) -> None:
    """One message in hpcexp's words with what, why and a way out; exit status 2."""
    said, words = told.said[mistake], MISTAKES[mistake][1]
    assert (2, "") == (said.status, said.out)
    assert [] == [w for w in words if w not in said.err], said.err
    assert [] == [w for w in HYDRAS_WORDS if w in said.err], said.err
    assert "problems:" not in said.err


def test_mistakes_are_named_before_anything_starts(told: Told) -> None:
    """Nothing heavy was imported, nothing written."""
    assert ([], ["a_file"]) == (told.imported, told.files)


def test_a_mistake_is_exit_status_2_of_the_command(project: Path) -> None:
    """And not a word of it goes to standard output."""
    said = command("train", "trainer.max_epoch=3", cwd=project)
    assert (2, "") == (said.status, said.out)
    assert "Did you mean 'max_epochs'?" in said.err


def test_several_mistakes_come_at_once(hpcexp: Callable[..., Said]) -> None:
    """Of the command line, of values, of targets and of devices."""
    wrong = ["optimzer.lr=1", "model=cn", "trainer.max_epochs=0", "+optimizer.lrr=1", "hardware.devices=4096"]
    said = hpcexp("plan", *wrong, "data.global_batch_size=0", "trainer.accumulate_grad_batches=0")
    assert 2 == said.status
    first, *problems = said.err.strip().split("\n\n")
    assert "7 problems:" == first
    expected = {"optimzer.lr", "model=cn", "trainer.max_epochs", "optimizer.lrr", "hardware.devices"}
    expected |= {"data.global_batch_size", "trainer.accumulate_grad_batches"}
    assert expected == {next(e for e in expected if p.startswith(e)) for p in problems}


@pytest.mark.parametrize("axes", ["hydra.sweeper.params={seed:'1,2'}", "+hydra.sweeper.params.seed='1,2'"])
def test_axes_that_hydra_takes_from_files_alone_are_said_so(hpcexp: Callable[..., Said], axes: str) -> None:
    """It ends in an AttributeError of its own."""
    said = hpcexp("train", "-m", axes)
    assert 2 == said.status
    assert "Fix: give the axes themselves" in said.err


def test_a_job_of_a_sweep_that_is_wrong_stops_all_before_the_first(hpcexp: Callable[..., Said], project: Path) -> None:
    """With the overrides of the job that is wrong."""
    said = hpcexp("train", "-m", "optimizer.lr=0.1,-1", "seed=1,2")
    assert 2 == said.status
    assert said.err.startswith("optimizer.lr=-1 seed=1; optimizer.lr=-1 seed=2\noptimizer.lr=-1 is out of range")
    assert not list(project.glob("runs/*/*/plan.yaml"))


@pytest.mark.parametrize(
    ("files", "overrides", "words"),
    [
        ({"experiment/x.yaml": "# @package _global_\ntrainer:\n  max_epoch: 3\n"}, [], ["max_epoch", "'max_epochs'"]),
        ({"experiment/x.yaml": "# @package _global_\nseed: many\n"}, [], ["seed", "a whole number"]),
        ({"experiment/x.yaml": "# @package _global_\nnotes: ${nam}\n"}, [], ["notes", "nam"]),
        (
            {"experiment/x.yaml": "# @package _global_\ndefaults:\n  - override /model: cn\n"},
            [],
            ["model/cn", "'cnn'"],
        ),
        (
            {"experiment/x.yaml": "# @package _global_\ndefaults:\n  - override /modle: cnn\n"},
            [],
            ["experiment/x", "modle"],
        ),
        ({"experiment/x.yaml": "# @package _global_\na: [1\n"}, [], ["experiment/x.yaml:3", "not YAML"]),
    ],
    ids=["unknown key", "wrong type", "interpolation", "missing option", "missing group", "no YAML"],
)
def test_mistakes_in_config_files_are_named(
    hpcexp: Callable[..., Said], project: Path, files: dict[str, str], overrides: list[str], words: list[str]
) -> None:
    """As those of the command line are."""
    write_conf(project, files)
    said = hpcexp("plan", "experiment=x", *overrides)
    assert 2 == said.status, said.err
    assert [] == [w for w in words if w not in said.err], said.err
    assert [] == [w for w in HYDRAS_WORDS if w in said.err], said.err


@pytest.mark.slow
def test_an_unknown_metric_of_an_own_model_is_named_while_planning(project: Path, train: Callable[..., Said]) -> None:
    """The source says that it is no LightningModule, so the task trains it."""
    write_module(project, "own_net", OWN_MODEL)
    said = train("~model", "+model._target_=own_net.Net", "trainer.monitor=val/accc", "tracking=off")
    assert 2 == said.status, said
    assert "val/accc" in said.err
    assert "val/acc" in said.err.replace("val/accc", "")
    assert "Traceback" not in said.out + said.err
    assert not (project / "runs").exists()


def test_a_server_that_does_not_answer_is_a_warning(hpcexp: Callable[..., Said]) -> None:
    """The run directory has everything all the same."""
    said = hpcexp("plan", "tracking.uri=http://127.0.0.1:9")
    assert 0 == said.status
    assert "warning: tracking.uri=http://127.0.0.1:9 does not answer" in said.err
    assert "hpcexp sync" in said.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["'trian'", "did you mean 'train'?", "Verbs: backup, cancel, compare"]),
        (["optimizer.lr=1"], ["an override, not a verb", "Fix: hpcexp train optimizer.lr=1"]),
        (["show", "last"], ["no runs", "Fix: hpcexp train"]),
        (["test", "last"], ["no runs"]),
        (["sync"], ["no runs"]),
        (["help", "optimzer"], ["'optimzer'", "'optimizer'"]),
        (["plan", "--config-dir", "nowhere"], ["--config-dir nowhere", "no such directory"]),
        (["plan", "--config-name", "confg"], ["confg"]),
        (["plan", "--cfg", "job", "-p", "trainr"], ["--package trainr"]),
        (["plan", "--blame", "optimizer.lrr"], ["optimizer.lrr", "did you mean 'optimizer.lr'?"]),
        (["plan", "--blmae", "x"], ["unrecognized arguments"]),
        (["ui"], ["mlflow.db", "Fix: hpcexp train"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_mistakes_of_other_verbs_are_named(hpcexp: Callable[..., Said], argv: list[str], words: list[str]) -> None:
    """Exit status 2, with a way out."""
    said = hpcexp(*argv)
    assert (2, "") == (said.status, said.out)
    assert [] == [w for w in words if w not in said.err], said.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["show", "nothing"], ["No run is named 'nothing'", "hpcexp runs"]),
        (["predict", "last", "no.png"], ["no file no.png"]),
        (["export", "last", "-o", "runs"], ["runs exists already", "Fix:"]),
        (["export", "last", "-o", "model.bin"], ["model.bin", ".pt2", "Fix: --output model.pt2"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_mistakes_about_runs_are_named(
    trained: TrainedRun,
    hpcexp: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    words: list[str],
) -> None:
    """Exit status 2, with a way out."""
    monkeypatch.chdir(trained.project)
    said = hpcexp(*argv)
    assert (2, "") == (said.status, said.out), said.err
    assert [] == [w for w in words if w not in said.err], said.err
