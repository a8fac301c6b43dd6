"""From a composed experiment to a frozen plan: what makes a run what it is, and what `hpcexp plan` shows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Said, only_run, write_conf, write_module

from hpcexp.compose.composer import Composed
from hpcexp.data.digits import Digits
from hpcexp.errors import RunError
from hpcexp.files.atomic import write_json
from hpcexp.lineage.code import code_digest, code_files, git_commit
from hpcexp.plan import Batch, Plan, Steps, load_plan, save_plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.naming import MAX_LENGTH, run_name
from hpcexp.targets.instantiate import on_path
from hpcexp.targets.source_code import imported_roots

Planned = Callable[..., Plan]


@pytest.fixture
def planned(compose: Callable[..., Composed], project: Path) -> Planned:
    """The plan of overrides in the project."""
    return lambda *overrides: prepare(compose(*overrides), project, ["hpcexp", "train", *overrides])


def test_a_plan_knows_everything_before_torch_does(planned: Planned, project: Path) -> None:
    """Batch, steps, data, parameters, place and store of the default experiment."""
    plan = planned("hardware=cpu")
    assert (Batch(64, 64, 1), Steps(19, 570, 30), Digits().facts()) == (plan.batch, plan.steps, plan.data)
    assert 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10 == plan.num_params
    assert f"sqlite:///{project}/runs/mlflow.db" == plan.tracking_uri
    assert str(project / "runs" / "digits_mlp" / plan.name) == plan.run_dir
    assert "hpcexp train hardware=cpu" == plan.lineage["command"]
    assert [] == list(project.iterdir())


def test_a_frozen_plan_comes_back_as_it_was(planned: Planned, tmp_path: Path) -> None:
    """Through its file."""
    plan = planned("model=cnn", "notes='1, 2: a'")
    save_plan(plan, tmp_path / "plan.yaml")
    assert plan == load_plan(tmp_path / "plan.yaml")


def test_a_plan_of_another_version_is_refused(planned: Planned, tmp_path: Path) -> None:
    """Rather than misread."""
    save_plan(replace(planned(), version=0), tmp_path / "plan.yaml")
    with pytest.raises(RunError, match="another version of hpcexp"):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "hardware.threads_per_rank=1",
        "tracking=off",
        "tracking.tags.team=vision",
        "run.label=again",
        "run.root=elsewhere",
        "notes=a thought",
        "launch=dry",
        "checkpoint.every_s=1",
        "trainer.log_every_n_steps=1",
        "trainer.profiler=simple",
        "hardware=cpu",
    ],
)
def test_where_and_how_a_run_runs_is_not_its_identity(planned: Planned, override: str) -> None:
    """The result is the same."""
    assert planned().signature == planned(override).signature


@pytest.mark.parametrize(
    "override",
    ["seed=2", "optimizer.lr=0.1", "model=cnn", "trainer.max_epochs=31", "data.val_fraction=0.2", "name=other"],
)
def test_what_a_run_asks_is_its_identity(planned: Planned, override: str) -> None:
    """The result may be another."""
    assert planned().signature != planned(override).signature


def test_the_way_of_saying_it_is_not_its_identity(planned: Planned) -> None:
    """By default, by override, by experiment; in any order."""
    signature = planned("optimizer.lr=0.01", "seed=1").signature
    assert signature == planned("seed=1", "optimizer.lr=1e-2", "experiment=digits_mlp").signature


def test_own_code_is_part_of_the_identity(planned: Planned, project: Path) -> None:
    """The module of a target, and the whole package that it stands in."""
    package = project / "plan_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("WIDTH = 1\n")
    write_module(package, "net", "class Net:\n    def __init__(self, in_shape, num_classes): pass\n")
    write_conf(project, {"model/own.yaml": "_target_: plan_package.net.Net\n"})
    on_path(project)
    before = planned("model=own").signature
    (package / "part.py").write_text("WIDTH = 2\n")
    assert before != planned("model=own").signature


def test_the_digest_of_the_code_is_that_of_its_content(tmp_path: Path) -> None:
    """Wherever it lies."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "net.py").write_text("class Net: pass\n")
    targets = [tmp_path / "a/net.py"], [tmp_path / "b/net.py"], []
    a, b, none = (code_digest(code_files(files, tmp_path, imported_roots)) for files in targets)
    assert a == b != none


@pytest.mark.parametrize(
    ("net", "target"),
    [
        ("import plan_helper\nclass Net:\n    def __init__(self, in_shape, num_classes): pass\n", "Net"),
        ("import plan_helper\nmake = lambda: object\nNet = make()\n", "Net"),
    ],
)
def test_modules_that_own_code_imports_are_part_of_the_identity(
    planned: Planned, project: Path, net: str, target: str
) -> None:
    """Also where only importing it could tell what the target is."""
    name = f"plan_net_{len(net)}"
    write_module(project, "plan_helper", "WIDTH = 1\n")
    write_module(project, name, net)
    write_conf(project, {"model/own.yaml": f"_target_: {name}.{target}\n"})
    on_path(project)
    before = planned("model=own").signature
    write_module(project, "plan_helper", "WIDTH = 2\n")
    assert before != planned("model=own").signature


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    """And that is no error."""
    assert None is git_commit(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "label", "expected"),
    [
        ([], "", "base-s5-abcdef01"),
        (["seed=5", "tracking=off", "experiment=x", "run.root=/tmp"], "", "base-s5-abcdef01"),
        (["optimizer.lr=0.01", "model=cnn"], "", "lr=0.01,model=cnn-s5-abcdef01"),
        (["model.hidden=[128,64]", "+model.x=a b/c"], "", "hidden=128,64,x=a_b_c-s5-abcdef01"),
        (
            ["~model", "~data", "model._target_=my.net.GAN", "+data._target_=my.Set"],
            "",
            "model=GAN,data=Set-s5-abcdef01",
        ),
        (["~model", "model.width=3"], "", "~model,width=3-s5-abcdef01"),
        (["optimizer.lr=0.01"], "try 2", "try_2-lr=0.01-s5-abcdef01"),
    ],
)
def test_names_tell_runs_apart(overrides: list[str], label: str, expected: str) -> None:
    """What was overridden, the seed, the start of the signature; a directory's name on any system."""
    assert expected == run_name(overrides, 5, "abcdef0123", label)


def test_long_names_are_cut_before_what_tells_them_apart() -> None:
    """A directory's name has 255 bytes at most."""
    name = run_name([f"model.key{i}={i}" for i in range(99)], 1, "abcdef0123", "")
    assert name.endswith("-s1-abcdef01")
    assert MAX_LENGTH + len("-s1-abcdef01") == len(name)


def test_the_same_identity_has_one_directory(planned: Planned) -> None:
    """Also where it is said in another way later, under another label."""
    first = planned("optimizer.lr=0.01")
    save_plan(first, RunDir(Path(first.run_dir)).plan)
    assert first.run_dir == planned("optimizer.lr=1e-2", "run.label=again").run_dir
    assert first.run_dir != planned("optimizer.lr=0.02").run_dir


def test_data_that_only_torch_can_read_is_left_to_the_job(planned: Planned, project: Path) -> None:
    """The plan says what it does not know; the file is not imported."""
    write_module(project, "plan_heavy", "import torch\nclass Data:\n    def __init__(self, batch_size=8): pass\n")
    on_path(project)
    plan = planned("data={_target_:plan_heavy.Data}", "~data.val_fraction", "~data.global_batch_size")
    assert (None, None, None, None) == (plan.batch, plan.steps, plan.data, plan.num_params)


def test_the_environment_says_where_mlflow_is(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the configuration does, or tracking is off."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/other.db")
    assert "sqlite:////tmp/other.db" == planned().tracking_uri
    assert "sqlite:////tmp/own.db" == planned("tracking.uri=sqlite:////tmp/own.db").tracking_uri
    assert None is planned("tracking=off").tracking_uri


def test_processes_that_share_a_cpu_are_a_warning(planned: Planned) -> None:
    """Unless they were asked for by name."""
    [warning] = planned("hardware=cpu", "hardware.devices=[0,1]").warnings
    assert "hardware.devices=1" in warning
    assert () == planned("hardware=cpu", "hardware.devices=[0,1]", "strategy=ddp").warnings


def test_the_command_shows_the_plan(hpcexp: Callable[..., Said], project: Path) -> None:
    """Name, devices, batch, data, steps, parameters, place, store and state."""
    said = hpcexp("plan", "hardware=cpu", "optimizer.lr=0.01", "hardware.threads_per_rank=1")
    assert (0, "") == (said.status, said.err)
    name, *lines = said.out.splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert name.startswith("digits_mlp/hardware=cpu,lr=0.01-s1-")
    assert "hardware=cpu" in told["groups"].split()
    assert "1 CPU process of 1 thread, world size 1, strategy single" == told["devices"]
    assert "64 (64 per rank)" == told["batch"]
    assert "570 (19 in each of 30 epochs)" == told["steps"]
    assert "85,002" == told["parameters"]
    assert f"runs/{name}" == told["run"]
    assert "not run yet" == told["state"]
    assert not (project / "runs").exists()


def test_a_dry_launch_freezes_the_plan_and_starts_nothing(hpcexp: Callable[..., Said], project: Path) -> None:
    """What would have run lies in the run directory."""
    said = hpcexp("train", "launch=dry", "hardware=cpu")
    run = only_run(project)
    assert (0, "") == (said.status, said.err)
    assert f"Planned, not started (launch=dry): {run.plan}" in said.out
    assert ["lineage", "plan.yaml"] == sorted(f.name for f in run.path.iterdir())
    assert "digits_mlp" == load_plan(run.plan).experiment


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("finished", "done (val/acc 0.9): `hpcexp train` would skip it"),
        ("failed", "tried before (failed, without a checkpoint): would begin again"),
        ("killed", "tried before (killed, without a checkpoint): would begin again"),
        ("running", "tried before (killed, without a checkpoint): would begin again"),
    ],
)
def test_the_command_says_what_became_of_earlier_tries(
    hpcexp: Callable[..., Said], project: Path, state: str, expected: str
) -> None:
    """A run whose supervisor is gone does not run, whatever it says."""
    hpcexp("train", "launch=dry")
    run = only_run(project)
    no_process = 2**22 + 1
    write_json(run.status, {"state": state, "started": 1.0, "pid": no_process})
    write_json(run.summary, {"best": {"monitor": "val/acc", "value": 0.9}})
    assert expected in hpcexp("plan").out


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ({"logs/rank-0.log": "Traceback", "mlflow.json": "{}", "metrics.jsonl": "", ".sync.lock": ""}, False),
        ({"metrics.jsonl": '{"t": 1, "s": 1, "m": {}}\n'}, True),
        ({"checkpoints/last.ckpt": "damaged"}, True),
        ({"notes.txt": "mine"}, True),
    ],
    ids=["nothing", "a step", "a checkpoint", "a file of the user's"],
)
def test_an_earlier_try_is_kept_if_it_came_to_anything(
    hpcexp: Callable[..., Said], project: Path, left: dict[str, str], kept: bool
) -> None:
    """Otherwise its directory, log and MLflow run are those of the next one: an early Ctrl-C leaves nothing beside."""
    hpcexp("train", "launch=dry")
    run = only_run(project)
    for name, text in left.items():
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text(text)
    assert 0 == hpcexp("train", "--fresh", "launch=dry").status
    assert ([f"{run.path.name}~1"] if kept else []) == [r.path.name for r in find_runs(project / "runs")][1:]
    assert kept != all((run.path / name).exists() for name in left)


def test_all_jobs_of_a_sweep_are_shown(hpcexp: Callable[..., Said], project: Path) -> None:
    """Every combination, with what is done of it; nothing is written."""
    said = hpcexp("plan", "-m", "optimizer.lr=0.1,0.2", "seed=range(1,3)")
    assert (0, "") == (said.status, said.err)
    told = [line.split("-s")[0] + "-s" + line.split("-s")[1][0] for line in said.out.splitlines() if "/" in line]
    expected = [f"runs  digits_mlp/lr={lr}-s{seed}" for lr in ("0.1", "0.2") for seed in (1, 2)]
    assert expected == told
    assert not (project / "runs").exists()


def test_a_sweep_may_go_over_groups_and_own_options(hpcexp: Callable[..., Said], project: Path) -> None:
    """`model=mlp,cnn` and `glob(*)` over them."""
    write_conf(project, {"scheduler/own.yaml": "_target_: hpcexp.train.optim.schedules.constant\nwarmup: 0.5\n"})
    assert 4 == hpcexp("plan", "-m", "model=glob(*)").out.count("runs  ")
    assert 6 == hpcexp("plan", "-m", "scheduler=glob(*)").out.count("runs  ")
