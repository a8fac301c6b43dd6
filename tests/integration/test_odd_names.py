"""Whatever a metric, parameter, tag or experiment is called, its values reach every kind of store, one to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_support import finish, make_run, mlflow_server

from hpcexp.compare.sources.mlflow_store import read_runs
from hpcexp.files.documents import read_plain
from hpcexp.plan import load_plan, save_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""

METRICS = (
    "val/f1/猫",
    "val/f1/狗",
    "val/a+b",
    "val/a*b",
    "val//f1",
    "val/f1",
    "/x",
    "a/../b",
    "val/F1",
    "m" * 300,
    "é",
    "",
)
PARAMS = {"model.a*b": "1", "model.a+b": "2", "model.A+b": "3", "model../x": "4"}
TAGS = {"who?": "a", "who!": "b", "/team": "c"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SQLite file and MLflow's own server."""
    place = tmp_path_factory.mktemp("stores")
    with mlflow_server(place) as (port, start):
        start()
        yield {"sqlite": f"sqlite:///{place}/mlflow.db", "server": f"http://127.0.0.1:{port}"}


def log(run: RunDir, values: dict[str, float], step: int) -> None:
    """As rank 0 journals them."""
    journal = Journal(run.journal)
    journal.append([(step, values)])
    journal.close()


def configure(run: RunDir, params: dict[str, str], tags: dict[str, str], experiment: str) -> None:
    """Give the plan settings of such names."""
    plan = load_plan(run.plan)
    tracking = {**plan.config["tracking"], "experiment": experiment, "tags": tags}
    model = {**plan.config["model"], **{key.removeprefix("model."): value for key, value in params.items()}}
    save_plan(replace(plan, config={**plan.config, "model": model, "tracking": tracking}), run.plan)


def in_mlflow(uri: str, run: RunDir) -> Any:
    """The run there."""
    from mlflow import MlflowClient

    return MlflowClient(uri).get_run(read_plain(run.mlflow)["run_id"])


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_odd_names_arrive_apart(tmp_path: Path, stores: dict[str, str], kind: str, capfd: Any) -> None:
    """Values, parameters and tags; the log says once what is called otherwise, and a tag has all of it."""
    run = make_run(tmp_path / "runs", stores[kind], name=f"odd-{kind}")
    configure(run, PARAMS, TAGS, experiment="猫/狗: 50% #1")
    values = {name: float(i) for i, name in enumerate(METRICS)}
    log(run, values, step=1)
    assert sync(run.path) is None
    log(run, {**values, "late//one": 99.0}, step=2)
    finish(run)
    assert sync(run.path) is None
    made = in_mlflow(stores[kind], run)
    renamed = json.loads(made.data.tags["hpcexp.renamed"])
    sent = {**values, "late//one": 99.0}
    assert {name: made.data.metrics[renamed["metrics"].get(name, name)] for name in sent} == sent
    assert {name: made.data.params[renamed["params"].get(name, name)] for name in PARAMS} == PARAMS
    assert {name: made.data.tags[renamed["tags"].get(name, name)] for name in TAGS} == TAGS
    assert "val/f1/猫" in made.data.metrics
    said = capfd.readouterr().err
    assert said.count("'val//f1'") == said.count("'late//one'") == said.count("'who?'") == 1


def test_comparing_uses_the_names_of_the_run(tmp_path: Path, stores: dict[str, str]) -> None:
    """Also from MLflow, where they are others."""
    run = make_run(tmp_path / "runs", stores["sqlite"], name="compared")
    configure(run, PARAMS, TAGS, experiment="compared")
    log(run, {"test//acc": 0.5, "test/acc/猫": 0.25}, step=1)
    finish(run)
    assert sync(run.path) is None
    [found] = read_runs(stores["sqlite"], ["compared/compared"]).runs
    assert found.numbers.items() >= {"test//acc": 0.5, "test/acc/猫": 0.25}.items()
    assert found.curve_of("test//acc").values == [0.5]
    assert found.facts["config"].items() >= PARAMS.items()


def test_pictures_of_odd_metrics_are_apart(tmp_path: Path, stores: dict[str, str]) -> None:
    """A metric called confusion has its own beside the matrix."""
    run = make_run(tmp_path / "runs", stores["sqlite"], name="pictures")
    names = ("val/f1/a", "val/f1_a", "val/f1.a", "val/F1.a", "val/confusion")
    for step in (1, 2):
        log(run, dict.fromkeys(names, float(step)), step)
    finish(run)
    assert sync(run.path) is None
    assert len(list(run.plots.glob("*.png"))) == len(names) + 1
