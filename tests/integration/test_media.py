"""What user code logs beside metrics is stored in the run directory, once and exact, and is found in MLflow."""

from __future__ import annotations

import json
import os
import time
import wave
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from record_support import set_state
from training_plans import digits_plan, run_job

import hpcexp
from hpcexp.errors import RunError
from hpcexp.files.documents import read_plain
from hpcexp.media.entries import Entry, index_of, read_entries
from hpcexp.media.recorder import Recorder
from hpcexp.plan import Plan, save_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points
from hpcexp.tracking.sync.run_process import sync
from hpcexp.train.engine.fit import train
from hpcexp.train.engine.interrupts import Signals
from hpcexp.train.engine.step_limit import StepLimitReached
from hpcexp.train.inference import evaluate, load_trained
from hpcexp.train.runtime.log_filters import quiet
from hpcexp.train.runtime.rank import Rank

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


def figure() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    made, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2])
    return made


class Logging(pl.Callback):
    """Logs by hpcexp's own functions, at every validation."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shade = trainer.global_step % 200
        hpcexp.log_image("val/samples", torch.full((2, 3, 8, 8), shade, dtype=torch.uint8))
        hpcexp.log_audio("tone", np.sin(np.arange(800) / 10), sample_rate=8000)
        hpcexp.log_text("note", f"step {trainer.global_step}")
        hpcexp.log_table("worst", {"id": [1, 2], "loss": [0.5, float("nan")]})
        hpcexp.log_histogram("weights", next(pl_module.parameters()), bins=10)
        hpcexp.log_file("readme", b"bytes")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        hpcexp.log_figure("val/curve", figure())
        hpcexp.log_image("é/猫+", np.zeros((4, 4)), caption="a cat")


class Foreign(pl.Callback):
    """Logs as code does that was written for MLflow, TensorBoard or wandb."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger: Any = trainer.logger
        own, run_id = logger.experiment, logger.run_id
        own.log_figure(run_id, figure(), "figures/with id.png")
        own.log_figure(figure(), "figures/without.svg")
        own.log_text(run_id, "some text", "notes/a.txt")
        own.log_dict({"a": [1]}, "notes/a.yaml")
        own.log_image(run_id, np.zeros((4, 4, 3), np.uint8), artifact_file="images/black.jpg")
        own.log_image(Image.new("RGB", (4, 4)), key="pil", step=3)
        own.log_table(run_id, data={"x": [1]}, artifact_file="rows.json")
        own.log_table(data={"x": [2], "y": ["b"]}, artifact_file="rows.json")
        own.log_metric(run_id, "foreign/client", 1.5, 1_700_000_000_000, 4)
        own.log_metric("foreign/fluent", 2.5, 5)
        own.log_param(run_id, "given", 7)
        own.set_tag(run_id, "given.tag", "seven")
        own.log_text("mine", "plan.yaml")
        logger.log_hyperparams({"nested": {"depth": 3}, "optimizer": {"lr": 0.003}})
        own.add_scalar("tb/scalar", 3.5, 6)
        own.add_scalars("tb/many", {"a": 1.0, "b": 2.0}, 6)
        own.add_image("tb/image", torch.zeros(1, 4, 4), 6)
        own.add_images("tb/images", torch.zeros(2, 3, 4, 4), 6)
        own.add_figure("tb/figure", figure(), 6)
        own.add_histogram("tb/histogram", torch.randn(10), 6)
        own.add_text("tb/text", "text", 6)
        own.add_audio("tb/audio", torch.zeros(1, 80), 6, sample_rate=8000)
        own.log({"wandb/number": 4.5, "wandb/image": Image.new("L", (4, 4))}, step=7)
        logger.log_image(key="logger/images", images=[np.zeros((4, 4)), torch.zeros(3, 4, 4)], caption=["one", "two"])
        logger.log_text("logger/texts", columns=["in", "out"], data=[["a", "b"]])
        logger.log_table(key="logger/table", columns=["n"], data=[[1]])
        logger.log_audio("logger/audio", [np.zeros(80)], sample_rate=[8000])


class Stray(pl.Callback):
    """Logs by MLflow itself."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import mlflow

        mlflow.set_experiment("elsewhere")
        with mlflow.start_run(run_name="mine"):
            mlflow.log_metric("stray/begin", 1.0)
            mlflow.log_param("stray", "yes")
            mlflow.set_tag("stray.tag", "t")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import mlflow

        mlflow.log_metric("stray/epoch", float(trainer.current_epoch))
        mlflow.log_image(np.zeros((4, 4, 3), np.uint8), key="stray/image")
        mlflow.log_table({"epoch": [trainer.current_epoch]}, "stray/table.json")
        Path("stray.txt").write_text("stray")
        mlflow.log_artifact("stray.txt", "folder")


class Nested(pl.Callback):
    """Asks for what cannot be."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import mlflow

        with mlflow.start_run(), mlflow.start_run(nested=True):
            pass


class AutoLog(pl.Callback):
    """Turns MLflow's own logging of Lightning on, where a module is made."""

    def __init__(self) -> None:
        import mlflow

        mlflow.pytorch.autolog(log_models=False)


def plan_of(run_dir: Path, *callbacks: type, uri: str | None = None, **more: Any) -> Plan:
    nodes = {kind.__name__.lower(): {"_target_": f"{__name__}.{kind.__name__}"} for kind in callbacks}
    return replace(digits_plan(run_dir, callbacks=nodes, **more), tracking_uri=uri)


def train_plan(plan: Plan, last_step: int | None = None) -> RunDir:
    """Train in this process, and leave the run as ended."""
    quiet()
    run = RunDir(Path(plan.run_dir))
    save_plan(plan, run.plan)
    alone = Rank(0, 1, torch.device("cpu"))
    with suppress(StepLimitReached):
        train(plan, run, alone, Signals(), started=time.time(), last_step=last_step)
    set_state(run, "finished")
    return run


def entries(run: RunDir, rank: int = 0) -> list[Entry]:
    return read_entries(index_of(run.media, rank))[0]


def of(run: RunDir, kind: str, name: str) -> list[Entry]:
    return [entry for entry in entries(run) if (entry.k, entry.n) == (kind, name)]


def content(run: RunDir, entry: Entry) -> bytes:
    return (run.media / entry.f).read_bytes()


def in_mlflow(uri: str, run: RunDir) -> tuple[Any, dict[str, str]]:
    """The run, and its artifacts: path → where that is."""
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    made = MlflowClient(uri).get_run(read_plain(run.mlflow)["run_id"])
    root = Path(download_artifacts(artifact_uri=made.info.artifact_uri, tracking_uri=uri))
    return made, {str(file.relative_to(root)): str(file) for file in root.rglob("*") if file.is_file()}


def test_own_functions_store_and_sync(tmp_path: Path) -> None:
    """Each value at its step, in a form that MLflow's page shows."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = train_plan(plan_of(tmp_path / "runs" / "digits_mlp" / "run", Logging, uri=uri))
    samples = of(run, "image", "val/samples")
    assert [(entry.s, entry.i) for entry in samples] == [(19, 0), (19, 1), (38, 0), (38, 1)]
    with Image.open(run.media / samples[2].f) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((8, 8), (38, 38, 38))
    [tone, *_] = of(run, "audio", "tone")
    with wave.open(str(run.media / tone.f)) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 800)
    [table, *_] = of(run, "table", "worst")
    assert json.loads(content(run, table)) == {"columns": ["id", "loss"], "data": [[1, 0.5], [2, None]]}
    assert content(run, of(run, "text", "note")[-1]) == b"step 38"
    assert [content(run, entry) for entry in of(run, "text", "é/猫+/caption")] == [b"a cat"]
    assert sync(run.path) is None
    made, files = in_mlflow(uri, run)
    assert made.data.tags["mlflow.loggedImages"] == "True"
    shown = [path for path in files if path.startswith("images/val~samples")]
    assert len(shown) == 8  # with a thumbnail each
    assert all(f"+timestamp+{entry.t}+" in "".join(shown) for entry in samples)
    assert any(path.startswith("images/val~curve+step+38") and path.endswith(".png") for path in files)
    assert any(path.startswith("images/weights+step+19") for path in files)
    tables = [entry["path"] for entry in json.loads(made.data.tags["mlflow.loggedArtifacts"])]
    assert tables == [f"media/{of(run, 'table', 'worst')[-1].f}"]
    assert {*tables, f"media/{tone.f}", "media/files/readme/00000019"} <= files.keys()


def test_words_of_other_loggers(tmp_path: Path) -> None:
    """With the run's id and without it; artifacts at their paths, but for those of hpcexp itself."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = train_plan(plan_of(tmp_path / "runs" / "digits_mlp" / "run", Foreign, uri=uri))
    values = {(key, p.step): v for p in read_points(run.journal)[0] for key, v in p.metrics.items()}
    expected = {
        ("foreign/client", 4): 1.5,
        ("foreign/fluent", 5): 2.5,
        ("tb/scalar", 6): 3.5,
        ("tb/many/b", 6): 2.0,
        ("wandb/number", 7): 4.5,
    }
    assert expected.items() <= values.items()
    assert sync(run.path) is None
    made, files = in_mlflow(uri, run)
    assert (made.data.params["nested.depth"], made.data.params["optimizer.lr"]) == ("3", "0.003")
    assert (made.data.params["given"], made.data.tags["given.tag"]) == ("7", "seven")
    paths = {
        "figures/with id.png",
        "figures/without.svg",
        "notes/a.txt",
        "notes/a.yaml",
        "images/black.jpg",
        "rows.json",
    }
    assert {*paths, "user/plan.yaml"} <= files.keys()
    assert "seed" in Path(files["plan.yaml"]).read_text()
    assert json.loads(Path(files["rows.json"]).read_text()) == {"columns": ["x", "y"], "data": [[1, None], [2, "b"]]}
    charts = {path.removeprefix("images/").partition("+")[0] for path in files if path.startswith("images/")}
    assert {"pil", "tb~image", "tb~images", "tb~images~1", "tb~figure", "tb~histogram", "wandb~image"} <= charts
    assert {"logger~images", "logger~images~1"} <= charts
    stored = {(entry.k, entry.n) for entry in entries(run)}
    texts = {("text", "tb/text"), ("audio", "tb/audio"), ("table", "logger/texts"), ("table", "logger/table")}
    assert {*texts, ("audio", "logger/audio"), ("text", "logger/images/caption")} <= stored


def test_stray_calls_go_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the step that training is at; no database appears where the job runs."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    run = train_plan(plan_of(tmp_path / "runs" / "digits_mlp" / "run", Stray, uri=uri))
    values = {(key, p.step): v for p in read_points(run.journal)[0] for key, v in p.metrics.items()}
    assert {("stray/begin", 0): 1.0, ("stray/epoch", 19): 0.0, ("stray/epoch", 38): 1.0}.items() <= values.items()
    assert not list(tmp_path.glob("mlruns")) + list(tmp_path.glob("mlflow.db"))
    assert sync(run.path) is None
    made, files = in_mlflow(uri, run)
    assert (made.data.params["stray"], made.data.tags["stray.tag"]) == ("yes", "t")
    assert (made.info.run_name, made.data.metrics["stray/epoch"]) == ("run", 1.0)
    assert json.loads(Path(files["stray/table.json"]).read_text())["data"] == [[0], [1]]
    assert "folder/stray.txt" in files
    assert len([path for path in files if path.startswith("images/stray~image+step+38")]) == 2


def test_autologging_goes_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics and parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    )
    status, output = run_job(plan_of(tmp_path / "runs" / "digits_mlp" / "run", AutoLog))[0]
    run = RunDir(tmp_path / "runs" / "digits_mlp" / "run")
    assert status == 0, output
    assert not list(tmp_path.glob("mlruns")) + list(tmp_path.glob("mlflow.db"))
    assert {entry.n for entry in entries(run) if entry.k == "param"} & {"lr", "optimizer_name", "epochs"}


def test_what_a_job_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    """Runs below it, and words that nothing stands behind."""
    with pytest.raises(RunError, match=r"mlflow.start_run\(nested=True\)"):
        train_plan(plan_of(tmp_path / "nested", Nested))
    recorder = Recorder(None, 0, lambda: 0)
    from hpcexp.train.engine.journal_logger import JournalLogger

    logger: Any = JournalLogger(None, recorder, "experiment", "name", tmp_path)
    for word in ("watch", "log_video", "frobnicate"):
        with pytest.raises(AttributeError, match=f"logger.{word}: hpcexp's logger does not have it"):
            getattr(logger, word)
        assert not hasattr(logger, word)
    with pytest.raises(AttributeError, match=r"logger.experiment.add_embedding: .*\nFix: log the points"):
        _ = logger.experiment.add_embedding
    with pytest.raises(RunError, match=r"'f+' is the id of another"):
        logger.experiment.log_text("f" * 32, "text", "a.txt")


def test_a_resumed_training_replaces_what_it_logs_again(tmp_path: Path) -> None:
    """Entries keep their first times; files and sync equal those of an uninterrupted training."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    whole = train_plan(plan_of(tmp_path / "whole" / "digits_mlp" / "run", Logging, Stray))
    resumed_dir = tmp_path / "resumed" / "digits_mlp" / "run"
    plan = plan_of(resumed_dir, Logging, Stray, uri=uri, checkpoint__every_steps=15, checkpoint__every_epochs=None)
    run = train_plan(plan, last_step=30)
    before = {entry.key: entry for entry in entries(run)}
    assert sync(run.path) is None
    run.last.unlink()
    run = train_plan(plan, last_step=34)
    assert sync(run.path) is None
    run = train_plan(plan)
    assert sync(run.path) is None
    after = {entry.key: entry for entry in entries(run)}
    assert before.items() <= after.items()
    assert after.keys() == {entry.key for entry in entries(whole)}
    assert {e.f: content(run, e) for e in after.values() if e.f} == {
        e.f: content(whole, e) for e in entries(whole) if e.f
    }
    _, files = in_mlflow(uri, run)
    assert len([path for path in files if path.startswith("images/val~samples")]) == 8
    assert json.loads(Path(files["stray/table.json"]).read_text())["data"] == [[0], [1]]


def test_every_rank_may_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hpcexp.log_*` of each rank is kept apart; a logger's words are rank 0's."""
    monkeypatch.setenv(
        "PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    plan = plan_of(
        tmp_path / "runs" / "digits_mlp" / "run", Logging, Stray, uri=uri, trainer__max_epochs=1, world_size=2
    )
    for status, output in run_job(plan):
        assert status == 0, output
    run = RunDir(Path(plan.run_dir))
    set_state(run, "finished")
    of_ranks = [{entry.key: entry.f for entry in entries(run, rank)} for rank in (0, 1)]
    assert {key for key in of_ranks[0] if key[0] in ("image", "table")} >= {
        key for key in of_ranks[1] if key[0] == "table"
    }
    assert not {key for key in of_ranks[1] if key[0] in ("param", "tag", "rows", "artifact")}
    assert not set(of_ranks[0].values()) & set(of_ranks[1].values()) - {""}
    assert sync(run.path) is None
    _, files = in_mlflow(uri, run)
    assert any(path.startswith("images/val~samples~rank-1+") for path in files)


def test_testing_a_run_again_records_nothing(tmp_path: Path) -> None:
    """`hpcexp test` runs the same code."""
    run = train_plan(plan_of(tmp_path / "run", Logging, Foreign))
    before = {path: path.stat().st_mtime_ns for path in run.media.rglob("*")}
    assert evaluate(load_trained(run), "test")
    assert {path: path.stat().st_mtime_ns for path in run.media.rglob("*")} == before
