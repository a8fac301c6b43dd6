"""A run's model under a name, in MLflow's registry."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from forked import command
from helpers import LEAN, WARM, Said, environment, only_run, python, write_module
from helpers import command as fresh_command
from record_support import mlflow_server, query
from served import ADA, serving

from hpcexp.files.documents import read_plain
from hpcexp.rundir import find_runs

pytestmark = pytest.mark.slow

SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=5", *LEAN)
LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
print(mlflow.pyfunc.load_model(sys.argv[2]).predict(np.zeros((1, 1, 8, 8), "float32"))["labels"][0])
"""


SIGNED = """
from hpcexp.models.mlp import MLP

class Signed(MLP):
    def __init__(self, in_shape, num_classes):
        super().__init__(in_shape, num_classes, hidden=[8])

    def forward(self, x):
        return super().forward(x) * +1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that MLflow has."""
    project = tmp_path_factory.mktemp("promoted")
    assert 0 == fresh_command("train", *SHORT, cwd=project).status
    return project


def loaded(uri: str, model: str, project: Path) -> str:
    """What the model says, in a process that knows no hpcexp."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, uri, model],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_a_promoted_model_is_loaded_by_its_name(trained: Path) -> None:
    """Twice promoted is once promoted; another run takes the alias over."""
    uri = f"sqlite:///{trained}/runs/mlflow.db"
    for _ in range(2):
        said = fresh_command("promote", "last", "--to", "digits@champion", cwd=trained)
        assert 0 == said.status, said
        assert "models:/digits@champion" == said.out.splitlines()[0]
        assert "version  1" in said.out
    assert loaded(uri, "models:/digits@champion", trained) in map(str, range(10))
    other = command("train", *SHORT, WARM, "seed=2", cwd=trained)
    assert 0 == other.status
    again = command("promote", "last", "--to", "digits@champion", cwd=trained)
    assert "champion, which was version 1" in again.out
    versions = "SELECT version, run_id FROM model_versions ORDER BY version"
    found = query(trained / "runs" / "mlflow.db", versions)
    ids = {json.loads(run.mlflow.read_text())["run_id"] for run in find_runs(trained / "runs")}
    assert [1, 2] == [version for version, _ in found]
    assert ids == {run_id for _, run_id in found}


def test_edited_code_is_not_taken_for_that_of_the_training(project: Path) -> None:
    """Weights that fit make another model of it: `test` says so, `promote` refuses, and mends what it was told."""
    own = ("~model", "+model._target_=signed.Signed")
    write_module(project, "signed", SIGNED)
    assert 0 == command("train", *SHORT, WARM, *own, cwd=project).status
    write_module(project, "signed", SIGNED.replace("+1", "-1"))
    told = command("test", "last", cwd=project)
    assert (0, True) == (told.status, "warning: signed.py is not what the run was trained with" in told.err)
    promote = ("promote", "last", "--to", "signed@best")
    refused = command(*promote, cwd=project)
    assert (2, True) == (refused.status, "code was edited since: signed.py." in refused.err)
    uri = f"sqlite:///{project}/runs/mlflow.db"
    assert 0 == command(*promote, "--unverified", cwd=project).status
    other = loaded(uri, "models:/signed@best", project)
    write_module(project, "signed", SIGNED)
    assert 0 == command(*promote, cwd=project).status
    assert other != loaded(uri, "models:/signed@best", project)


def test_edited_data_is_said(project: Path) -> None:
    """An evaluation on other pictures is none of the run's."""
    for split, cls, i in product(("train", "val", "test"), ("cat", "dog"), range(8)):
        picture(project / "pictures" / split / cls / f"{i}.png", "red")
    data = ("data=images_folder", "data.root=pictures", "data.global_batch_size=8")
    assert 0 == command("train", *SHORT, WARM, *data, "tracking=off", cwd=project).status
    assert "" == command("test", "last", cwd=project).err
    for i in range(5):
        picture(project / "pictures" / "test" / "cat" / f"{i}.png", "blue")
    said = command("test", "last", cwd=project)
    assert 0 == said.status
    assert "warning: test/cat/0.png, test/cat/1.png, test/cat/2.png and 2 more are not what the run" in said.err


def picture(path: Path, colour: str) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def test_what_was_not_tracked_is_sent_to_mlflow_and_promoted(project: Path) -> None:
    """Sweeps with their jobs, each into its experiment: trained with tracking=off, and not again."""
    for name, seeds in (("one", "1,2"), ("two", "3,4")):
        asked = (f"seed={seeds}", f"tracking.experiment={name}", "tracking=off")
        assert 0 == command("train", "-m", *SHORT, *asked, cwd=project).status
    refused = command("promote", "last", "--to", "late", cwd=project)
    assert "Fix: hpcexp sync RUN --uri" in refused.err
    runs = [str(run.path) for run in find_runs(project / "runs")]
    assert 2 == command("sync", "--uri", "sqlite:///runs/mlflow.db", cwd=project).status
    said = command("sync", *runs, "--uri", "sqlite:///runs/mlflow.db", cwd=project)
    assert (0, True) == (said.status, "4 of 4 ended runs are in MLflow" in said.out), said
    database = project / "runs" / "mlflow.db"
    assert [(4,)] == query(database, "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'")
    counted = "SELECT e.name, count(*) FROM runs r JOIN experiments e USING (experiment_id) GROUP BY e.name"
    assert [("one", 3), ("two", 3)] == query(database, f"{counted} ORDER BY e.name")
    assert "models:/late/1" == command("promote", "last", "--to", "late", cwd=project).out.splitlines()[0]


def test_a_server_keeps_promoted_models(project: Path) -> None:
    """It finds the model's files by itself."""
    with mlflow_server(project) as (port, start):
        start()
        uri = f"http://127.0.0.1:{port}"
        assert 0 == command("train", *SHORT, WARM, f"tracking.uri={uri}", cwd=project).status
        said = command("promote", "last", "--to", "served@best", cwd=project)
        assert 0 == said.status, said
        assert loaded(uri, "models:/served@best", project) in map(str, range(10))


def test_a_groups_server_has_all_that_users_do(project: Path) -> None:
    """With an account that is no administrator's: training, promoting, loading, exporting and comparing."""
    with serving(project / "data") as server:
        server.add_user(ADA)
        there = {"MLFLOW_TRACKING_USERNAME": ADA[0], "MLFLOW_TRACKING_PASSWORD": ADA[1]}
        assert 0 == command("train", *SHORT, WARM, f"tracking.uri={server.address}", cwd=project, **there).status
        said = command("promote", "last", "--to", "served@best", cwd=project, **there)
        assert (0, "models:/served@best") == (said.status, said.out.splitlines()[0]), said
        uri = server.address.replace("//", f"//{ADA[0]}:{ADA[1]}@")
        assert loaded(uri, "models:/served@best", project) in map(str, range(10))
        run_id = read_plain(only_run(project).mlflow)["run_id"]
        code = f"""
            import mlflow
            mlflow.set_tracking_uri("{uri}")
            client = mlflow.MlflowClient()
            client.log_text("{run_id}", "again", "notes/late.txt")
            print(mlflow.artifacts.load_text("runs:/{run_id}/notes/late.txt"), len(client.list_artifacts("{run_id}")))
            made = mlflow.register_model("runs:/{run_id}/checkpoints", "files")
            print(made.version, mlflow.artifacts.download_artifacts("models:/files/1"))
        """
        said = python(code, project)
        assert said.out.startswith("again "), said
        compared = command("compare", "--uri", server.address, cwd=project, **there)
        assert (0, True) == (compared.status, "val/acc" in compared.out)
        assert 0 == command("export", "last", "--format", "mlflow", cwd=project, **there).status


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("a/b", "has neither / nor :"),
        ("@champion", "has neither / nor :"),
        ("digits@latest", "neither latest nor like v1"),
        ("digits@v3", "neither latest nor like v1"),
        ("digits@", "an alias has letters"),
    ],
)
def test_names_that_mlflow_refuses_are_refused_at_once(hpcexp: Callable[..., Said], to: str, told: str) -> None:
    said = hpcexp("promote", "any", "--to", to)
    assert 2 == said.status
    assert told in said.err
    assert "Fix: " in said.err


def test_what_is_no_result_is_not_promoted(train: Callable[..., Said], project: Path) -> None:
    """A run that was changed since, that is not in MLflow, or that has not ended."""
    assert 0 == train(*SHORT, "tracking=off").status
    run = only_run(project)

    def refused(*more: str) -> str:
        said = command("promote", "last", "--to", "digits", *more, cwd=project)
        assert 2 == said.status, said
        return said.err

    assert "not in MLflow (tracking=off)" in refused()
    run.summary.write_text(run.summary.read_text().replace("}", " }", 1))
    run.plan.write_text(run.plan.read_text().replace("tracking_uri: null", "tracking_uri: http://127.0.0.1:9"))
    assert "then repeat with --trust" in refused()
    assert "was changed since it ended" in refused("--trust")
    assert "changed  summary.json" in refused("--trust")
    assert "MLflow does not have the run" in refused("--trust", "--unverified")
    shutil.rmtree(run.lineage)
    assert "removed  lineage/" in refused("--trust")
    status = json.loads(run.status.read_text())
    run.status.write_text(json.dumps({**status, "state": "killed"}))
    assert "is killed: it has no final result" in refused("--trust")
