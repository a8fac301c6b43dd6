"""The verbs on one real run: what they print, write and record."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import forked
import pytest
import torch
import yaml
from helpers import REPOSITORY, Said, TrainedRun, command, environment, only_run, python
from record_support import finish, make_run

from hpcexp import __version__
from hpcexp.cli.main import VERBS
from hpcexp.files.documents import read_plain
from hpcexp.plan import load_plan

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

mlflows_sqlalchemy = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")
"""MLflow's own use of SQLAlchemy."""


@pytest.fixture
def on_trained(
    trained: TrainedRun, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """`hpcexp ARGUMENT…` beside the trained run."""
    monkeypatch.chdir(trained.project)
    return hpcexp


@pytest.fixture
def client(trained: TrainedRun) -> MlflowClient:
    """MLflow on the store of the trained run."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{trained.project}/runs/mlflow.db")


@pytest.fixture
def recorded(client: MlflowClient) -> Run:
    """The one run that MLflow knows."""
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def test_help_names_every_verb(hpcexp: Callable[..., Said]) -> None:
    """Without any argument too."""
    said = hpcexp("--help")
    assert (0, "") == (said.status, said.err)
    assert said == hpcexp()
    assert [] == [verb for verb in VERBS if not re.search(rf"^  {verb} +\w", said.out, re.MULTILINE)]
    assert f"hpcexp {__version__}\n" == hpcexp("--version").out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(hpcexp: Callable[..., Said], verb: str) -> None:
    """What it does and what it takes."""
    said = hpcexp(verb, "--help")
    assert (0, "") == (said.status, said.err)
    assert said.out.startswith(f"usage: hpcexp {verb} ")


def test_training_ends_with_what_a_person_wants_to_know(trained: TrainedRun) -> None:
    """Progress in lines where there is no terminal; results, checkpoint, place, and where to look."""
    name, *lines = trained.said.out.splitlines()
    assert f"digits_mlp/{trained.run.path.name}" == name
    assert any(re.match(r"epoch 2/2  step 38/38  ", line) for line in lines)
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert 0.5 < float(told["test/acc"]) <= 1
    assert (trained.project / told["checkpoint"]).is_file()
    assert f"runs/digits_mlp/{name.partition('/')[2]}" == told["run"]
    assert "hpcexp ui" == told["look"]


def test_the_run_directory_is_whole(trained: TrainedRun) -> None:
    """As docs/architecture.md says."""
    files = {str(f.relative_to(trained.run.path)) for f in trained.run.path.rglob("*") if f.is_file()}
    expected = {"plan.yaml", "status.json", "metrics.jsonl", "summary.json", "confusion.json", "mlflow.json"}
    expected |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "logs/rank-0.log", "logs/sync.log"}
    assert expected <= files
    assert any(f.startswith("plots/") and f.endswith(".png") for f in files)
    assert "" == trained.run.rank_log(0).read_text()
    assert torch.load(trained.run.best, weights_only=True)


@mlflows_sqlalchemy
def test_mlflow_has_the_run_with_its_parameters(trained: TrainedRun, recorded: Run) -> None:
    """Every value under its dotted name; lists as they are typed."""
    expected = {"optimizer.lr": "0.01", "trainer.max_epochs": "2", "seed": "3", "model.hidden": "[256, 256]"}
    assert expected.items() <= recorded.data.params.items()
    assert ("FINISHED", load_plan(trained.run.plan).name) == (recorded.info.status, recorded.info.run_name)


@mlflows_sqlalchemy
def test_mlflow_has_every_step(client: MlflowClient, recorded: Run) -> None:
    """Once, in order."""
    history = client.get_metric_history(recorded.info.run_id, "train/lr")
    assert list(range(1, 39)) == [m.step for m in history]
    assert [19, 38] == [m.step for m in client.get_metric_history(recorded.info.run_id, "val/acc")]
    assert {"train/loss", "val/loss", "test/acc", "test/loss", "epoch"} <= recorded.data.metrics.keys()


@mlflows_sqlalchemy
def test_mlflow_knows_where_the_run_comes_from(trained: TrainedRun, recorded: Run) -> None:
    """Identity, data, machine, versions, command, the user's own tags and notes."""
    plan, tags = load_plan(trained.run.plan), recorded.data.tags
    assert plan.data is not None
    expected = {
        "hpcexp.signature": plan.signature,
        "hpcexp.data.fingerprint": plan.data.fingerprint,
        "hpcexp.world_size": "1",
        "hpcexp.code.digest": plan.lineage["code.digest"],
        "hpcexp.version.torch": plan.lineage["version.torch"],
        "hpcexp.host": plan.lineage["host"],
        "mlflow.source.name": plan.lineage["command"],
        "team": "vision",
    }
    assert expected.items() <= tags.items()
    assert "Is it fast?" in tags["mlflow.note.content"]
    assert plan.lineage["command"].startswith("hpcexp train trainer.max_epochs=2 optimizer.lr=0.01 seed=3")


@mlflows_sqlalchemy
def test_mlflow_has_plan_and_pictures(client: MlflowClient, recorded: Run) -> None:
    """As artifacts."""
    names = {f.path for f in client.list_artifacts(recorded.info.run_id)}
    assert "plan.yaml" in names
    assert any(f.path.endswith(".png") for n in names for f in client.list_artifacts(recorded.info.run_id, n))


def test_runs_are_listed(on_trained: Callable[..., Said], trained: TrainedRun) -> None:
    """By experiment and by state; for people and for programs."""
    said = on_trained("runs")
    assert (0, "") == (said.status, said.err)
    header, row = said.out.splitlines()
    assert ["state", "started", "took", "run", "result"] == header.split()
    assert row.startswith("finished ")
    assert f"digits_mlp/{trained.run.path.name}" in row
    assert said == on_trained("runs", "digits_mlp", "--state", "finished")
    assert "No runs of that kind in " in on_trained("runs", "other").out
    listed = json.loads(on_trained("runs", "--json").out)
    assert (str(trained.run.path), "finished", True) == (listed["path"], listed["state"], listed["synced"])


@pytest.mark.parametrize("word", ["last", "name", "experiment/name", "directory", "signature"])
def test_a_run_is_found_by(on_trained: Callable[..., Said], trained: TrainedRun, word: str) -> None:
    """Its place, its name or the start of its signature."""
    path = trained.run.path
    words = {"name": path.name, "directory": str(path), "signature": path.name.rpartition("-")[2][:5]}
    words |= {"experiment/name": f"{path.parent.name}/{path.name}", "last": "last"}
    said = on_trained("show", words[word])
    assert (0, "") == (said.status, said.err)
    assert said.out.startswith(f"digits_mlp/{path.name}\n")


def test_a_run_is_shown(on_trained: Callable[..., Said], trained: TrainedRun) -> None:
    """State, overrides, command, results; its configuration and log on request."""
    told = on_trained("show", "last").out
    for words in ("state      finished", "seed=3", "notes      Is it fast?", "test/acc", "metrics.jsonl"):
        assert words in told
    assert load_plan(trained.run.plan).config == yaml.safe_load(on_trained("show", "last", "--config").out)
    assert trained.run.rank_log(0).read_text() == on_trained("show", "last", "--log").out


def test_a_log_of_any_bytes_is_shown(hpcexp: Callable[..., Said], project: Path) -> None:
    """A model may print what is not UTF-8."""
    assert 0 == hpcexp("train", "launch=dry").status
    log = only_run(project).rank_log(0)
    log.parent.mkdir()
    log.write_bytes(b"caf\xe9\n")
    said = hpcexp("show", "last", "--log")
    assert (0, "caf\N{REPLACEMENT CHARACTER}\n") == (said.status, said.out)


def test_a_trained_model_is_tested_again(on_trained: Callable[..., Said], trained: TrainedRun) -> None:
    """With the result it had; on the validation set where asked."""
    said = on_trained("test", "last", "--json")
    assert 0 == said.status, said.err
    assert read_plain(trained.run.summary)["test"] == pytest.approx(json.loads(said.out), rel=1e-5)
    best = read_plain(trained.run.summary)["best"]
    assert best["value"] == pytest.approx(
        json.loads(on_trained("test", "last", "--split", "val", "--json").out)["val/acc"]
    )
    assert re.search(r"test/acc +0\.\d+", on_trained("test", "last").out)


def test_a_trained_model_reads_pictures(on_trained: Callable[..., Said], tmp_path: Path) -> None:
    """Digits that it was tested on, saved as files: most are read right, each with a probability for every class."""
    from PIL import Image

    from hpcexp.data.digits import Digits

    samples = Digits().load("test")
    lowest, highest = samples.inputs.min(), samples.inputs.max()
    pixels = ((samples.inputs - lowest) / (highest - lowest) * 255).to(torch.uint8)
    files = []
    for i in range(20):
        files.append(str(tmp_path / f"{i}.png"))
        Image.frombytes("L", (8, 8), bytes(pixels[i].flatten().tolist())).save(files[-1])
    said = on_trained("predict", "last", "--json", *files)
    assert 0 == said.status, said.err
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert files == [a["file"] for a in answers]
    right = sum(a["prediction"] == str(int(t)) for a, t in zip(answers, samples.targets, strict=False))
    assert right >= 14
    assert all(sum(a["values"].values()) == pytest.approx(1, abs=1e-3) for a in answers)
    header, row = on_trained("predict", "last", files[0]).out.splitlines()
    assert ["file", "prediction", "probability"] == header.split()
    assert answers[0]["prediction"] == row.split()[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # which a command does not show
def test_a_trained_model_is_handed_over(on_trained: Callable[..., Said], trained: TrainedRun, tmp_path: Path) -> None:
    """As files that load without hpcexp: torch's take any number of samples, MLflow's gives what they mean."""
    for kind, file in EXPORTED.items():
        asked = ("export", "last", "--format", kind, "-o", str(tmp_path / file))
        said = forked.command(*asked, cwd=trained.project) if kind == "mlflow" else on_trained(*asked)
        assert (0, f"{tmp_path / file}\n", "") == (said.status, said.out, said.err)
    code = f"""
    import sys, warnings
    warnings.simplefilter("ignore")
    sys.modules["hpcexp"] = None
    import mlflow, numpy, torch
    for model in (torch.export.load({EXPORTED["torch"]!r}).module(), torch.jit.load({EXPORTED["torchscript"]!r})):
        print(*(tuple(model(torch.zeros(n, 1, 8, 8)).shape) for n in (1, 5)))
    answer = mlflow.pyfunc.load_model({EXPORTED["mlflow"]!r}).predict(numpy.zeros((3, 1, 8, 8), numpy.float32))
    print(answer["outputs"].shape, answer["probabilities"].sum(1).round(3), len(answer["labels"]))
    """
    answer = python(code, tmp_path)
    assert ["(1, 10) (5, 10)"] * 2 + ["(3, 10) [1. 1. 1.] 3"] == answer.out.splitlines(), answer.err


EXPORTED = {"torch": "model.pt2", "torchscript": "model.pt", "mlflow": "model"}


@pytest.mark.slow
@mlflows_sqlalchemy
def test_what_mlflow_did_not_get_is_sent_later(trained: TrainedRun, hpcexp: Callable[..., Said], project: Path) -> None:
    """To a store that is there now; once."""
    from mlflow import MlflowClient

    runs = project / "runs"
    target = runs / "digits_mlp" / trained.run.path.name
    shutil.copytree(trained.run.path, target)
    (target / "mlflow.json").unlink()
    plan = (target / "plan.yaml").read_text()
    (target / "plan.yaml").write_text(plan.replace(str(trained.project), str(project)))
    for _ in range(2):
        said = hpcexp("sync")
        assert (0, "1 of 1 ended runs are in MLflow or need not be.\n") == (said.status, said.out), said.err
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    assert 1 == len(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_runs_that_cannot_be_synced_are_told(trained: TrainedRun, hpcexp: Callable[..., Said], project: Path) -> None:
    """With the reason; exit status 1."""
    target = project / "runs" / "digits_mlp" / trained.run.path.name
    shutil.copytree(trained.run.path, target)
    (target / "mlflow.json").unlink()
    plan = load_plan(target / "plan.yaml")
    text = (target / "plan.yaml").read_text()
    (target / "plan.yaml").write_text(
        text.replace(f"tracking_uri: {plan.tracking_uri}", "tracking_uri: http://127.0.0.1:9")
    )
    said = hpcexp("sync")
    assert 1 == said.status
    assert f"digits_mlp/{target.name}: http://127.0.0.1:9: " in said.out
    assert "0 of 1" in said.out


def test_doctor_looks_at_everything(hpcexp: Callable[..., Said]) -> None:
    """Packages, devices, places, store and tools; exit status 0 where training works."""
    said = hpcexp("doctor")
    assert (0, "") == (said.status, said.err), said.out
    assert "!!" not in said.out
    looked = {line.split("  ok  ")[-1].split("  ")[0].strip() for line in said.out.splitlines()[1:]}
    assert {"torch", "mlflow", "cores", "torch works", "runs", "config files", "MLflow store", "git"} <= looked


def test_doctor_says_what_does_not_work(hpcexp: Callable[..., Said], project: Path) -> None:
    """Exit status 1, with the way out."""
    (project / "runs").touch()
    said = hpcexp("doctor")
    assert 1 == said.status
    assert re.search(r"!!  runs .*is a file, not a directory", said.out)


@pytest.mark.parametrize("argv", [["--help"], ["runs", "--json"]])
def test_a_full_disk_beneath_what_is_printed_is_told(tmp_path: Path, argv: list[str]) -> None:
    """In two lines, and by the exit status; whether it shows at the end or amidst."""
    for name in map(str, range(60)):
        make_run(tmp_path / "runs", None, name=name)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hpcexp", *argv],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (2, 2) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert "cannot be written: No space left on device" in done.stderr


def test_what_the_terminal_cannot_show_is_a_question_mark(tmp_path: Path) -> None:
    """As the sign of an interval where the encoding is ASCII."""
    for seed in (1, 2):
        finish(make_run(tmp_path / "runs", None, name=f"lr=0.01-s{seed}"))
        plan = tmp_path / "runs" / "digits_mlp" / f"lr=0.01-s{seed}" / "plan.yaml"
        plan.write_text(plan.read_text().replace("seed: 1", f"seed: {seed}"))
    said = command("compare", "--metric", "test/acc", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (0, "") == (said.status, said.err)
    assert "0.985 ? 0 (2)" in said.out


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """`hpcexp … | head` ends without a word."""
    for verb in ("--help", "help"):
        piped = f"{sys.executable} -m hpcexp {verb} | true"
        done = subprocess.run(["sh", "-c", piped], cwd=tmp_path, env=environment(), capture_output=True, check=False)
        assert b"" == done.stderr


def test_the_module_is_the_command() -> None:
    """`python -m hpcexp` from a checkout."""
    said = python(
        "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('hpcexp', run_name='__main__')", REPOSITORY
    )
    assert f"hpcexp {__version__}\n" == said.out
