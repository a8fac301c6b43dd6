"""A task, data set and model from outside the package have what the packaged ones have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import LEAN, REPOSITORY, command, only_run, python

from hpcexp.files.documents import read_plain
from hpcexp.plan import load_plan
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.journal import read_points

pytestmark = pytest.mark.slow

OVERRIDES = ("task=tagging", "data=numbers", "model=tagger", "trainer.max_epochs=2", "tracking=off", *LEAN)
CONF = {
    "task/tagging.yaml": "_target_: tagging.Tagging\nmonitor: val/token_acc\n",
    "data/numbers.yaml": "_target_: tagging.Numbers\nglobal_batch_size: 16\n",
    "model/tagger.yaml": "_target_: tagger.Tagger\n",
}


def made_project(directory: Path) -> Path:
    """A user's project around the third party's modules."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tagging", "tagger"):
        shutil.copy(REPOSITORY / "tests" / "third_party" / f"{name}.py", directory)
    for name, content in CONF.items():
        (directory / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / "conf" / name).write_text(content)
    return directory


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run."""
    project = made_project(tmp_path_factory.mktemp("tagging"))
    said = command("train", *OVERRIDES, cwd=project)
    assert 0 == said.status, said.err
    return project


def values(run: RunDir) -> dict[tuple[int, str], float]:
    return {(p.step, name): value for p in read_points(run.journal)[0] for name, value in p.metrics.items()}


def test_planning_knows_its_metrics_and_their_directions(tagged: Path) -> None:
    """Without torch, from the task alone; the model's size follows in the job."""
    plan = load_plan(only_run(tagged).plan)
    assert plan.metrics is not None
    assert ("max", "min") == (plan.metrics["val/token_acc"], plan.metrics["test/errors"])
    assert "max" == plan.config["trainer"]["mode"]
    said = command("plan", *OVERRIDES, "trainer.monitor=val/token_ac", cwd=tagged)
    assert "Did you mean 'val/token_acc'?" in said.err
    said = command("plan", *OVERRIDES, "trainer.monitor=val/errors", "trainer.mode=max", cwd=tagged)
    assert "trainer.mode=max: of val/errors a lower value is better" in said.err


def test_it_trains_and_is_evaluated_again(tagged: Path) -> None:
    """Every step's loss, every metric, and the same test metrics from the best weights."""
    run = only_run(tagged)
    found = values(run)
    assert set(range(1, 13)) == {step for step, name in found if name == "train/loss"}
    assert {"val/loss", "val/token_acc", "val/errors", "test/token_acc"} <= {name for _, name in found}
    said = command("test", run.path.name, "--json", cwd=tagged)
    assert read_plain(run.summary)["test"] == pytest.approx(json.loads(said.out), rel=1e-6)


def test_it_predicts_files_and_splits(tagged: Path) -> None:
    """Files of different lengths, read by its source; samples of a split in their order."""
    (tagged / "short.txt").write_text("1 2 3")
    (tagged / "long.txt").write_text("4 5 6 7 8")
    name = only_run(tagged).path.name
    said = command("predict", name, "short.txt", "long.txt", "--json", cwd=tagged)
    lengths = [len(json.loads(line)["prediction"]) for line in said.out.splitlines()]
    assert [3, 5] == lengths, said.err
    said = command("predict", name, "--split", "test", "--json", cwd=tagged)
    assert [str(n) for n in range(25)] == [json.loads(line)["sample"] for line in said.out.splitlines()]


def test_it_is_exported_with_its_names_and_lengths(tagged: Path) -> None:
    """Other numbers of samples and other lengths than at the export; MLflow knows dtype and open axes."""
    name = only_run(tagged).path.name
    said = command("export", name, "-o", "model.pt2", cwd=tagged)
    assert 0 == said.status, said.err
    program = torch.export.load(tagged / "model.pt2").module()
    assert (3, 11, 3) == tuple(program(numbers=torch.zeros(3, 11, dtype=torch.int64)).shape)
    assert 0 == command("export", name, "--format", "mlflow", "-o", "model", cwd=tagged).status
    said = python(
        """
        import mlflow.pyfunc, numpy
        loaded = mlflow.pyfunc.load_model("model")
        [spec] = loaded.metadata.signature.inputs.inputs
        print(spec.type, spec.shape, loaded.predict(numpy.zeros((2, 6), "int64"))["outputs"].shape)
        """,
        tagged,
    )
    assert "int64 (-1, -1) (2, 6, 3)" == said.out.strip(), said.err


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    """Killed and stopped in its middle, with validations inside of epochs."""
    project = made_project(tmp_path)
    said = command("drill", "preempt", *OVERRIDES, "trainer.val_every_steps=5", "drill.kills=2", cwd=project)
    assert 0 == said.status, f"{said.out}\n{said.err}"


def test_two_ranks_learn_and_measure_the_same(tmp_path: Path) -> None:
    """Uneven splits of the evaluation sets, padded batches, a mean over positions."""
    project = made_project(tmp_path)
    two = ("hardware=cpu", "hardware.devices=2", "strategy=ddp")
    for ranks in ((), two):
        said = command("train", *OVERRIDES, "model.dropout=0", "hardware.threads_per_rank=1", *ranks, cwd=project)
        assert 0 == said.status, said.err
    alone, both = (values(run) for run in find_runs(project / "runs"))
    assert alone == pytest.approx(both, rel=1e-5)


def test_a_sweep_ranks_by_its_metric(tmp_path: Path) -> None:
    """By name alone: which direction is better, the task says."""
    project = made_project(tmp_path)
    base = ", ".join(f"'{override}'" for override in OVERRIDES)
    (project / "sweeps").mkdir()
    content = f"question: Q\nbase: [{base}]\naxes: {{optimizer.lr: [1.0e-9, 0.02]}}\nmetric: val/errors\n"
    (project / "sweeps" / "rates.yaml").write_text(content)
    said = command("sweep", "rates", cwd=project)
    assert 0 == said.status, f"{said.out}\n{said.err}"
    best = next(line for line in said.out.splitlines() if line.lstrip().startswith("1 "))
    assert "0.02" in best, said.out
