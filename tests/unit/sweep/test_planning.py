"""Jobs of a sweep from its axes to their plans, which are those that each would have alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import Said, write_conf, write_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from hpcexp import planner as preparation
from hpcexp.compose.composer import Composer, composed
from hpcexp.compose.many import Many
from hpcexp.errors import ConfigError, RunError
from hpcexp.files.atomic import write_json
from hpcexp.memo import Once
from hpcexp.plan import load_head, load_signature, save_plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir
from hpcexp.sweep.spec.axes import job_overrides
from hpcexp.sweep.spec.axes import jobs_of as sweep_jobs
from hpcexp.targets.instantiate import on_path

NET = "class Net:\n    def __init__(self, in_shape, num_classes, width=1): pass\n"


def jobs_of(project: Path, *overrides: str) -> list[list[str]]:
    composer = Composer(project)
    return job_overrides(composer, composer.load(list(overrides), RunMode.MULTIRUN))


@pytest.mark.parametrize(
    "line",
    [
        "seed=1",
        "tracking.experiment=${name}_x name=a,b",
        "seed=1,2 optimizer.lr=0.1,0.2",
        "model=mlp,cnn seed=range(3) notes='a','c,d'",
        "model=glob(*,exclude=v*) +optimizer.foreach=true,false",
        "seed=sort(3,1,2) optimizer.lr=choice(1e-3,2)",
        "model.hidden=[1,2],[3] tracking.tags={a:1},{b:2} ~scheduler",
        "hydra.sweeper.max_batch_size=2 seed=1,2,3",
        "optimizer.lr=tag(a,choice(1,2)) optimizer.lr=3,4",
        "seed=range(1,2,0.5)",
    ],
)
def test_jobs_are_those_of_hydras_sweeper(project: Path, line: str) -> None:
    """In its order, as they were typed."""
    overrides = [override for override in line.split(" ") if not override.startswith("hydra")]
    parsed = OverridesParser.create(Composer(project).loader).parse_overrides(overrides)
    [expected] = BasicSweeper.split_arguments(parsed, None)
    jobs = jobs_of(project, *line.split(" "))
    assert list(map(meaning, expected)) == list(map(meaning, jobs))
    assert {o for o in overrides if "," not in o and "(" not in o} <= {o for job in jobs for o in job}


def meaning(job: list[str]) -> list[tuple[str, object]]:
    """Keys and values, which can be typed in several ways."""
    return [(o.get_key_element(), o.value()) for o in OverridesParser.create().parse_overrides(job)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["tags={a:1}", "tags={b:2}", "seed=1,2"], [["tags={a:1}", "tags={b:2}", f"seed={s}"] for s in (1, 2)]),
        (["tags={a:1}", "tags.a=2", "tags={a:3}", "seed=1"], [["tags={a:1}", "tags.a=2", "tags={a:3}", "seed=1"]]),
        (["x={a:1},{a:2}", "x={b:3}"], [["x={a:1}", "x={b:3}"], ["x={a:2}", "x={b:3}"]]),
        (["+x={a:1}", "+x={b:2}"], [["+x={a:1}", "+x={b:2}"]]),
        (["seed=1", "tags={a:1}", "seed=2"], [["tags={a:1}", "seed=2"]]),
        (["seed=1,2", "notes=x", "seed=3"], [["seed=3", "notes=x"]]),
        (["~tags.a", "tags={a:1}", "~tags.a"], [["tags={a:1}", "~tags.a"]]),
    ],
)
def test_every_mapping_reaches_the_job(project: Path, overrides: list[str], expected: list[list[str]]) -> None:
    """In its place among the others: Hydra merges it with what is there. Of other values the last counts."""
    parsed = OverridesParser.create(Composer(project).loader).parse_overrides(overrides)
    assert expected == sweep_jobs(parsed)


@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=joblib",), ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1")]
)
def test_repeated_mappings_are_planned_as_in_one_run(hpcexp: Callable[..., Said], launcher: tuple[str, ...]) -> None:
    """With every launcher and sweeper."""
    mappings = [f"+callbacks={{{n}:{{_target_:pytorch_lightning.callbacks.{c}}}}}" for n, c in CALLBACKS]
    alone = hpcexp("plan", *mappings, "optimizer.lr=0.01")
    swept = hpcexp("plan", "-m", *mappings, "optimizer.lr=0.01,0.1", *launcher)
    signature = next(line.split()[1] for line in alone.out.splitlines() if "signature" in line)
    assert signature[:8] in swept.out


CALLBACKS = (("a", "ModelSummary"), ("b", "Timer"))


def test_values_replace_axes_of_a_file(project: Path) -> None:
    """Those of the command line; arguments that stand in no file too."""
    params = (
        "# @package _global_\nhydra:\n  sweeper:\n    params: {optimizer.lr: '1,2', optimizer.amsgrad: 'true,false'}\n"
    )
    write_conf(project, {"experiment/x.yaml": params})
    expected = [["optimizer.lr=3", f"optimizer.amsgrad={v}", "experiment=x"] for v in ("True", "False")]
    assert expected == jobs_of(project, "experiment=x", "optimizer.lr=3")


def test_an_axis_without_end_is_an_error(hpcexp: Callable[..., Said]) -> None:
    """That says what to do."""
    said = hpcexp("plan", "-m", "optimizer.lr=interval(0.1,1)")
    assert 2 == said.status
    assert "optimizer.lr=interval(0.1,1): " in said.err
    assert "Fix: optimizer.lr=range(…)" in said.err


def test_plans_are_those_that_each_job_has_alone(project: Path) -> None:
    """Composed by Hydra and looked at alone, with own code in a checkout, and runs that there are already."""
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    write_module(project, "together_net", NET)
    write_conf(project, {"model/own.yaml": "_target_: together_net.Net\n"})
    on_path(project)
    composer, command = Composer(project), ["hpcexp", "train", "-m"]
    jobs = jobs_of(project, "model=mlp,own", "optimizer.lr=0.1,0.2", "seed=1,2", "data.val_fraction=0.1,0.2")
    master = composer.load([], RunMode.MULTIRUN)
    alone = [prepare(composed(composer.loader.load_sweep_config(master, job)), project, command) for job in jobs]
    before = replace(alone[3], name="other", run_dir=str(Path(alone[3].run_dir).with_name("x-" + alone[3].name[-8:])))
    save_plan(before, RunDir(Path(before.run_dir)).plan)
    alone[3] = replace(alone[3], name=Path(before.run_dir).name, run_dir=before.run_dir)
    many, once = Many(composer), Once()
    assert alone == [prepare(many.compose(job), project, command, once=once) for job in jobs]


def test_what_jobs_share_is_looked_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git, code, environment and each data set; the machine is the launcher's affair."""
    looked: list[str] = []

    def count(name: str) -> None:
        look: Callable[..., Any] = getattr(preparation, name)
        monkeypatch.setattr(preparation, name, lambda *a: looked.append(name) or look(*a))

    names = ["code_digest", "code_files", "data_facts", "environment", "git_commit", "root_problems"]
    for name in names:
        count(name)
    many, once = Many(Composer(project)), Once()
    for lr in (1, 2, 3):
        for batch in (32, 64):
            prepare(many.compose([f"optimizer.lr={lr}", f"data.global_batch_size={batch}"]), project, [], once=once)
    assert names == sorted(looked)


def test_jobs_that_are_planned_later_tell_of_edited_code(project: Path) -> None:
    """A search that takes days plans job by job; what is edited meanwhile is in the identity and in the checks."""
    write_module(project, "edited_net", NET)
    write_conf(project, {"model/own.yaml": "_target_: edited_net.Net\n"})
    on_path(project)
    many = Many(Composer(project))
    first = prepare(many.compose(["model=own", "model.width=2"]), project, [], once=Once())
    write_module(project, "edited_net", NET.replace("width", "breadth"))
    second = prepare(many.compose(["model=own", "model.breadth=2"]), project, [], once=Once())
    assert first.lineage["code.digest"] != second.lineage["code.digest"]
    with pytest.raises(ConfigError, match="takes no argument 'width'"):
        prepare(many.compose(["model=own", "model.width=2"]), project, [], once=Once())


def test_a_mistake_in_an_axis_is_named_once(hpcexp: Callable[..., Said]) -> None:
    """However many jobs have it."""
    said = hpcexp("plan", "-m", "optimzer.lr=0.1,0.2", "trainer.max_epochs=x,3", "seed=range(1000)")
    assert (2, 1, 1) == (said.status, said.err.count("optimzer.lr="), said.err.count("trainer.max_epochs=x"))
    assert "did you mean 'optimizer'?" in said.err.lower()


def test_what_only_some_jobs_do_not_compose_with_is_named_with_the_first(hpcexp: Callable[..., Said]) -> None:
    """A key that one option of a group has, and another has not."""
    said = hpcexp("plan", "-m", "model=cnn,mlp", "~model.hidden", "seed=1,2")
    assert 2 == said.status
    assert "model=cnn ~model.hidden seed=1\n~model.hidden: model.hidden cannot be left out" in said.err


def test_finished_jobs_are_known_by_the_head_of_their_plan(hpcexp: Callable[..., Said], project: Path) -> None:
    """The long rest is not read."""
    hpcexp("train", "-m", "seed=1,2", "launch=dry")
    for plan in project.glob("runs/*/*/plan.yaml"):
        head, _, _ = plan.read_text().partition("config:")
        plan.write_text(f"{head}config: {{[")
        write_json(plan.with_name("status.json"), {"state": "finished"})
    said = hpcexp("plan", "-m", "seed=1,2,3")
    assert ["done", "done", "runs", "3"] == [line.split()[0] for line in said.out.splitlines()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version: 0\nsignature: abc\n", "another version"),
        ("name: x\n", "damaged"),
        ("a: [", "damaged"),
        (None, "No run"),
    ],
)
def test_a_plan_without_a_signature_of_ours_is_an_error(tmp_path: Path, content: str | None, words: str) -> None:
    """As one that cannot be loaded."""
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=words):
        load_signature(path)


def test_the_head_of_a_plan_is_what_stands_before_its_configuration(project: Path) -> None:
    """Name, place and signature."""
    plan = prepare(Composer(project).compose([]), project, [])
    save_plan(plan, project / "plan.yaml")
    head = {key: getattr(plan, key) for key in ("version", "name", "experiment", "run_dir", "signature")}
    assert (head, plan.signature) == (load_head(project / "plan.yaml"), load_signature(project / "plan.yaml"))
