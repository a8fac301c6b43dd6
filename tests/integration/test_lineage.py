"""What a run keeps of where it comes from: code, environment, machine, data, parents."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import FAST, Said, TrainedRun, only_run, write_module

from hpcexp.data.digits import FILE, NUM_SAMPLES, Digits
from hpcexp.data.facts import data_facts
from hpcexp.data.manifest import data_manifest
from hpcexp.files.documents import read_plain
from hpcexp.launch.provenance import capture
from hpcexp.launch.provenance.capture import Capture
from hpcexp.launch.provenance.origins import override_origins
from hpcexp.lineage.environment import installed, scheduler, variables
from hpcexp.lineage.manifest import differences
from hpcexp.lineage.patch import ALL_LIMIT, FILE_LIMIT, uncommitted
from hpcexp.plan import JobOf, load_plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir, find_runs

KEY = "AKIA" + "A" * 16
NET = """
    import extra_part_{n}
    from hpcexp.models.mlp import MLP

    class Net(MLP):
        pass
"""
FALL = """
    from pathlib import Path
    from pytorch_lightning import Callback

    class Fall(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4 and not Path("fell").exists():
                Path("fell").touch()
                raise OSError("no network")
"""


def git(place: Path, *arguments: str) -> str:
    """What git says."""
    me = ("-c", "user.name=Ada", "-c", "user.email=ada@localhost", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *me, *arguments], cwd=place, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(project: Path) -> Path:
    """The project as a git repository with a commit."""
    git(project, "init", "-q")
    (project / ".gitignore").write_text("__pycache__/\n")
    (project / "model.py").write_text("WIDTH = 1\n")
    (project / "data.bin").write_bytes(bytes(range(256)))
    (project / "old.py").write_text(f"key = '{KEY}'\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "Begin")
    return project


def lineage(run: RunDir, name: str) -> dict[str, Any]:
    """A file of a run's lineage, which has to be there."""
    found = read_plain(run.lineage / f"{name}.json")
    assert found, name
    return found


def test_a_patch_restores_changed_and_new_files(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Text and binary, edited, deleted, executable, in folders; and the user's own index stays as it is."""
    (checkout / "model.py").write_text("WIDTH = 2\n")
    (checkout / "data.bin").write_bytes(bytes(reversed(range(256))))
    (checkout / "new folder").mkdir()
    (checkout / "new folder" / "größe.py").write_text("x = 1\n")
    git(checkout, "mv", "data.bin", "moved.bin")
    before = git(checkout, "status", "--porcelain")
    changes = uncommitted(checkout, checkout / "runs")
    assert ("", {}) == (changes.problem, changes.left_out)
    assert before == git(checkout, "status", "--porcelain")
    copy = tmp_path_factory.mktemp("copy")
    git(copy, "clone", "-q", str(checkout), ".")
    (copy / "p").write_bytes(changes.patch)
    git(copy, "apply", "p")
    (copy / "p").unlink()
    names = sorted(str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file() and ".git" not in f.parts)
    assert [".gitignore", "model.py", "moved.bin", "new folder/größe.py", "old.py"] == names
    assert all((copy / name).read_bytes() == (checkout / name).read_bytes() for name in names)


def test_secrets_and_big_files_are_left_out_and_named(checkout: Path) -> None:
    """By a file's name, by what it holds or held, by its size; and runs are no part of the project."""
    (checkout / ".env").write_text("A=1\n")
    (checkout / "server.pem").write_text("x")
    (checkout / "notes.txt").write_text(f"the key is {KEY}\n")
    (checkout / "old.py").write_text("key = None\n")
    (checkout / "data.bin").write_bytes(b"x" * (FILE_LIMIT + 1))
    (checkout / "model.py").write_text("WIDTH = 3\n")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "mlflow.db").write_text("x")
    changes = uncommitted(checkout, checkout / "runs")
    assert {".env", "server.pem", "notes.txt", "old.py", "data.bin"} == changes.left_out.keys()
    assert KEY.encode() not in changes.patch
    assert ["model.py"] == [
        line.split(" b/")[1] for line in changes.patch.decode().splitlines() if line.startswith("diff")
    ]


def test_all_together_a_patch_has_a_limit(checkout: Path) -> None:
    """What comes after it is named."""
    for number in range(ALL_LIMIT // FILE_LIMIT + 2):
        (checkout / f"part-{number:02}").write_bytes(b"y\n" * (FILE_LIMIT // 2))
    changes = uncommitted(checkout, checkout / "runs")
    assert {"part-10", "part-11"} == changes.left_out.keys()


def test_a_run_says_which_code_it_was(checkout: Path, train: Callable[..., Said]) -> None:
    """Commit, patch, files that make the result, and what its rank imported beyond them."""
    write_module(checkout, "net_1", NET.format(n=1))
    write_module(checkout, "extra_part_1", "X = 1")
    said = train(*FAST, "model._target_=net_1.Net")
    assert (0, "") == (said.status, said.err)
    run = only_run(checkout)
    code, job = lineage(run, "code"), lineage(run, "job")
    assert git(checkout, "rev-parse", "HEAD").strip() == code["commit"]
    assert "net_1.py" in (run.lineage / "changes.patch").read_text()
    digest = hashlib.sha256((checkout / "extra_part_1.py").read_bytes()).hexdigest()
    assert (digest, digest) == (code["files"]["extra_part_1.py"], job["imported"]["extra_part_1.py"])
    assert "hpcexp/train/engine/fit.py" in job["imported"]
    assert not any(name.startswith("torch/") for name in job["imported"])
    assert code["files"].items() >= {k: v for k, v in job["imported"].items() if k.startswith("hpcexp/train/")}.items()


def test_code_that_is_edited_between_plan_and_start_is_told(checkout: Path, compose: Callable[..., Any]) -> None:
    """A sweep's job may start days after it was planned."""
    write_module(checkout, "net_2", NET.format(n=2))
    write_module(checkout, "extra_part_2", "X = 1")
    sys.path.insert(0, str(checkout))
    plan = prepare(compose("model._target_=net_2.Net"), checkout, ["hpcexp"])
    assert [] == Capture().write(plan, RunDir(checkout / "a"))
    (checkout / "extra_part_2.py").write_text("X = 2\n")
    [warning] = Capture().write(plan, RunDir(checkout / "b"))
    assert "extra_part_2.py" in warning
    assert ["extra_part_2.py"] == lineage(RunDir(checkout / "b"), "code")["edited_since_planning"]


def test_a_run_keeps_environment_machine_and_data(trained: TrainedRun) -> None:
    """All packages, the processor, and the digest of every file of the data."""
    environment, data = lineage(trained.run, "environment"), lineage(trained.run, "data")
    assert installed() == environment["packages"]
    assert "" == environment["variables"]["CUDA_VISIBLE_DEVICES"]
    assert lineage(trained.run, "hardware")["cores"] >= 1
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert [{"path": str(FILE), "bytes": FILE.stat().st_size, "rows": NUM_SAMPLES, "sha256": digest}] == data["files"]
    image = {"shape": [1, 8, 8], "dtype": "float32", "axes": ["channel", "row", "column"]}
    assert {"image": image} == data["schema"]["inputs"]
    assert Digits().facts().fingerprint == data["fingerprint"]
    assert load_plan(trained.run.plan).lineage["version.torch"] == lineage(trained.run, "job")["torch"]["version"]


def test_data_without_files_and_data_that_cannot_be_asked_say_so(project: Path) -> None:
    """Rather than an empty list."""
    shape = {"num_train": 8, "num_val": 8, "num_test": 8, "input_shape": [4], "num_classes": 2}
    facts, _ = data_facts("hpcexp.data.synthetic.Synthetic", shape)
    assert "made from its arguments" in data_manifest("hpcexp.data.synthetic.Synthetic", shape, facts).note
    assert "known to the job alone" in data_manifest("torch.utils.data.Dataset", {}, None).note


def test_the_schedulers_job_and_variables_are_kept_without_secrets() -> None:
    """Whatever a variable is called that has a key in it."""
    environ = {"SLURM_JOB_ID": "17", "OMP_NUM_THREADS": "4", "HF_TOKEN": "abc", "MLFLOW_TRACKING_URI": "http://a:b@c"}
    assert {"scheduler": "slurm", "scheduler.job": "17"} == scheduler(environ)
    kept = {**environ, "HF_TOKEN": "***", "MLFLOW_TRACKING_URI": "http://a@c"}
    assert kept == variables({**environ, "HOME": "/root", "TERM": "vt100"})


def test_a_project_without_git_says_so(project: Path, hpcexp: Callable[..., Said]) -> None:
    """And nothing fails, not even where it is only planned."""
    assert 0 == hpcexp("train", *FAST, "launch=dry").status
    code = lineage(only_run(project), "code")
    assert code["commit"] is None
    assert "no git repository" in code["problem"]


def test_git_that_fails_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what it said."""
    (checkout / ".git" / "index").write_text("damaged")
    assert "git: " in uncommitted(checkout, checkout / "runs").problem
    monkeypatch.setenv("PATH", "")
    assert "git cannot be run" in uncommitted(checkout, checkout / "runs").problem


def test_overrides_tell_where_they_were_given(project: Path, hpcexp: Callable[..., Said]) -> None:
    """On an axis of the sweep, or on the command line; the experiment's file is named with what it sets."""
    said = hpcexp("train", "-m", "launch.isolation=warm", *FAST, "trainer.max_steps=2", "seed=1,2")
    assert (0, "") == (said.status, said.err)
    [first, second] = find_runs(project / "runs")
    origin = lineage(second, "origin")
    told = {given["override"]: given["from"] for given in origin["overrides"]}
    assert ("command line", "sweep axis") == (told["trainer.max_steps=2"], told["seed=2"])
    assert "digits_mlp" == origin["experiment"]["sets"]["name"]
    assert str(project / "runs" / "sweeps") in origin["sweep"]
    shared = [(run.lineage / "environment.json").stat().st_ino for run in (first, second)]
    assert shared[0] == shared[1]


def test_overrides_of_a_sweeps_file_are_told_from_those_beside_it(compose: Callable[..., Any], project: Path) -> None:
    """The command line has only the latter."""
    plan = prepare(compose("optimizer.lr=0.1", "seed=2", "model=cnn"), project, ["hpcexp", "sweep", "x", "model=cnn"])
    expected = [("optimizer.lr=0.1", "sweep file"), ("seed=2", "sweep axis"), ("model=cnn", "command line")]
    assert expected == list(override_origins(replace(plan, job_of=JobOf("s", ("seed=2",)))))


def test_a_continued_run_keeps_the_lineage_of_each_attempt(project: Path, train: Callable[..., Said]) -> None:
    """With the checkpoint that it went on from; and each attempt has its record."""
    write_module(project, "fall", FALL)
    asked = (*FAST, "checkpoint.every_steps=1", "callbacks.fall._target_=fall.Fall")
    assert 1 == train(*asked).status
    run = only_run(project)
    first = lineage(run, "origin")
    assert (1, None) == (first["attempt"], first["continued"])
    assert [] == differences(run)
    assert 0 == train(*asked).status
    assert first == read_plain(run.lineage / "attempt-1" / "origin.json")
    second = lineage(run, "origin")
    assert (2, 3, str(run.last)) == (second["attempt"], second["continued"]["step"], second["continued"]["checkpoint"])
    records = [json.loads(line) for line in (run.lineage / "manifest.jsonl").read_text().splitlines()]
    assert [(1, "failed"), (2, "finished")] == [(r["attempt"], r["status"]["state"]) for r in records]
    assert [] == differences(run)


def test_a_run_that_begins_with_another_names_it(project: Path, train: Callable[..., Said]) -> None:
    """`run.resume_from` on other devices: run and checkpoint."""
    write_module(project, "fall", FALL)
    asked = (*FAST, "hardware=cpu", "checkpoint.every_steps=1", "callbacks.fall._target_=fall.Fall")
    assert 1 == train(*asked).status
    run = only_run(project)
    assert 0 == train(*asked, "hardware.devices=2", f"run.resume_from='{run.path.name[-8:]}'").status
    [other] = [r for r in find_runs(project / "runs") if r != run]
    begun = lineage(other, "origin")["initialised_from"]
    assert (str(run.last), 3) == (begun["checkpoint"], begun["step"])
    assert [] == differences(other)


def test_a_lineage_that_cannot_be_written_ends_no_run(
    compose: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(capture, "write_atomic", full)
    [warning] = Capture().begin(prepare(compose(), project, []), RunDir(project / "run"), 1, {})
    assert "No space left on device" in warning


@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow's SQLAlchemy
def test_mlflow_has_the_lineage(trained: TrainedRun) -> None:
    """As artifacts, tags, and with the data set."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained.project}/runs/mlflow.db")
    run = client.get_run(read_plain(trained.run.mlflow)["run_id"])
    names = {f.path for f in client.list_artifacts(run.info.run_id, "lineage")}
    assert {f"lineage/{f.name}" for f in trained.run.lineage.iterdir()} == names
    seal = json.loads((trained.run.lineage / "manifest.jsonl").read_text())["sha256"]
    data = lineage(trained.run, "data")
    assert (seal, data["digest"]) == (run.data.tags["hpcexp.seal"], run.data.tags["hpcexp.data.digest"])
    [given] = run.inputs.dataset_inputs
    assert data["rows"] == json.loads(given.dataset.profile)
    assert data["schema"] == json.loads(given.dataset.schema)
