"""Lightning's callbacks as people configure them: each works with hpcexp's logger and checkpoints, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from test_media import in_mlflow, train_plan
from training_plans import digits_plan, run_job

from hpcexp.checks.callbacks import REFUSED, refused_callbacks
from hpcexp.checks.tracking import tracking_problems
from hpcexp.errors import ConfigError
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points
from hpcexp.targets.lightning_module import is_subclass
from hpcexp.tracking.sync.run_process import sync
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint, weights_digest

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""

LIGHTNING = "pytorch_lightning.callbacks."
CHECKPOINTS = {
    "best": {
        "_target_": f"{LIGHTNING}ModelCheckpoint",
        "monitor": "val/loss",
        "save_top_k": 2,
        "save_last": True,
        "filename": "{epoch}-{val/loss:.2f}",
        "dirpath": "ckpt/nested/deep",
    },
    "steps": {
        "_target_": f"{LIGHTNING}ModelCheckpoint",
        "every_n_train_steps": 10,
        "save_top_k": -1,
        "filename": "at-{step}",
        "dirpath": "checkpoints",
    },
    "weights": {"_target_": f"{LIGHTNING}ModelCheckpoint", "save_weights_only": True, "every_n_epochs": 2},
}
OTHERS = {
    "stop": {"_target_": f"{LIGHTNING}EarlyStopping", "monitor": "val/loss", "patience": 10},
    "rate": {"_target_": f"{LIGHTNING}LearningRateMonitor", "logging_interval": "step"},
    "device": {"_target_": f"{LIGHTNING}DeviceStatsMonitor", "cpu_stats": True},
    "summary": {"_target_": f"{LIGHTNING}RichModelSummary", "max_depth": 2},
    "bar": {"_target_": f"{LIGHTNING}RichProgressBar"},
    "timer": {"_target_": f"{LIGHTNING}Timer", "duration": "00:01:00:00"},
}


class OwnAccumulation(GradientAccumulationScheduler):
    """A user's, which only the job can tell."""

    def __init__(self) -> None:
        super().__init__({0: 2})


def plan_of(run_dir: Path, callbacks: dict[str, Any], **more: Any) -> Plan:
    every = {"trainer__log_every_n_steps": 5, "checkpoint__every_steps": 15, "checkpoint__every_epochs": None}
    return digits_plan(run_dir, callbacks=callbacks, **every, **more)


def weights(run: RunDir) -> dict[str, str]:
    """The checkpoints that callbacks have written, and digests of the weights in them."""
    files = [file for file in run.path.rglob("*.ckpt") if file.parent != run.checkpoints]
    return {str(file.relative_to(run.path)): weights_digest(read_checkpoint(file)["state_dict"]) for file in files}


def values(run: RunDir) -> list[tuple[int, dict[str, float]]]:
    """What the journal has, but for what is measured."""
    points = [
        (p.step, {k: v for k, v in p.metrics.items() if "DeviceStats" not in k}) for p in read_points(run.journal)[0]
    ]
    return sorted(((step, metrics) for step, metrics in points if metrics), key=str)


def test_callbacks_resume_exactly_and_write_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints of several callbacks, beside hpcexp's own; every monitor's values, once."""
    monkeypatch.chdir(tmp_path)
    callbacks = {**CHECKPOINTS, **OTHERS}
    whole = train_plan(plan_of(tmp_path / "whole", callbacks))
    run = train_plan(plan_of(tmp_path / "run", callbacks), last_step=30)
    run = train_plan(plan_of(tmp_path / "run", callbacks))
    assert values(run) == values(whole)
    assert weights(run) == weights(whole)
    names = {Path(name).name for name in weights(run) if name.startswith("checkpoints/callbacks/")}
    assert {"at-step=10.ckpt", "at-step=30.ckpt"} <= names
    deep = [name for name in weights(run) if name.startswith("ckpt/nested/deep/")]
    assert len(deep) == 3
    assert any("val/loss=" in name for name in deep)
    assert read_checkpoint(run.last)["global_step"] == 38
    assert "hpcexp" in read_checkpoint(run.last)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "run"}
    names = {name for _, metrics in values(run) for name in metrics}
    assert "lr-AdamW" in names
    assert any("DeviceStatsMonitor" in name for point in read_points(run.journal)[0] for name in point.metrics)
    assert "in the attempt before" not in capfd.readouterr().err


def test_callbacks_work_in_ranks(tmp_path: Path) -> None:
    """In processes of their own that take a warning for an error, two of them."""
    plan = plan_of(tmp_path / "run", {**CHECKPOINTS, **OTHERS}, world_size=2, trainer__max_epochs=1)
    for status, output in run_job(plan):
        assert status == 0, output
    assert "checkpoints/callbacks/at-step=10.ckpt" in weights(RunDir(tmp_path / "run"))


def test_checkpoints_of_callbacks_are_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule for the best weights: `tracking.model`."""
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for model, expected in {"auto": True, "never": False}.items():
        plan = plan_of(tmp_path / "runs" / "digits_mlp" / model, CHECKPOINTS, tracking__model=model)
        run = train_plan(replace(plan, tracking_uri=uri))
        assert sync(run.path) is None
        _, files = in_mlflow(uri, run)
        assert ("checkpoints/callbacks/at-step=10.ckpt" in files) is expected


def test_a_directory_from_the_root_on_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the configuration says."""
    monkeypatch.chdir(tmp_path)
    node = {"_target_": f"{LIGHTNING}ModelCheckpoint", "dirpath": str(tmp_path / "shared"), "filename": "x"}
    train_plan(plan_of(tmp_path / "run", {"own": node}))
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_breaks_a_promise_is_refused_while_planning(kind: str) -> None:
    """With what to do instead."""
    name = kind.rpartition(".")[2]
    [problem] = refused_callbacks({"mine": {"_target_": f"pytorch_lightning.callbacks.{name}"}}, is_subclass)
    assert problem.startswith(f"callbacks.mine: {name} cannot be used")
    assert "\nFix: " in problem


def test_what_inherits_is_refused_too_and_nothing_else() -> None:
    """As far as the source says."""
    own = {"mine": {"_target_": f"{__name__}.OwnAccumulation"}, "off": None}
    assert "callbacks.mine: GradientAccumulationScheduler" in refused_callbacks(own, is_subclass)[0]
    assert [] == refused_callbacks({**CHECKPOINTS, **OTHERS}, is_subclass)


def test_two_progress_bars_are_one_too_many() -> None:
    """Lightning would say so in the job."""
    bars = {name: {"_target_": f"{LIGHTNING}{name}"} for name in ("RichProgressBar", "TQDMProgressBar")}
    assert "~callbacks.TQDMProgressBar" in refused_callbacks(bars, is_subclass)[0]


def test_a_subclass_of_what_is_refused_is_found_in_the_job(tmp_path: Path) -> None:
    """Before the first step."""
    node = {"_target_": f"{__name__}.OwnAccumulation"}
    with pytest.raises(ConfigError, match=r"callbacks\.own: GradientAccumulationScheduler cannot be used"):
        train_plan(plan_of(tmp_path / "run", {"own": node}))


def test_names_that_mlflow_cannot_have_are_refused() -> None:
    """Of experiments and tags."""
    assert [] == tracking_problems("猫/狗", {"team": "a", "mlflowish": 1, 3: "b"})
    assert "is empty" in tracking_problems(" ", {})[0]
    assert "501 characters" in tracking_problems("x" * 501, {})[0]
    assert "tracking.tags.hpcexp.signature" in tracking_problems("x", {"hpcexp.signature": "a"})[0]
