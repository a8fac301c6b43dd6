"""What holds ranks together: DDP with its options, and compression that a continued run goes on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_module
from test_resume import EXACT, KILLER, result, run_in, values

from hpcexp.runs.journal import read_points

TWO = ("hardware=cpu", "hardware.devices=2", "strategy=ddp")
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=8", "model.hidden=[64]", "optimizer.lr=0.01")


def losses(train: Callable[..., Said], project: Path, *overrides: str) -> list[float]:
    """Training losses of a short run on two ranks."""
    root = project / str(len(list(project.iterdir())))
    said = train(*TWO, *SHORT, *overrides, f"run.root={root}", "tracking=off")
    assert 0 == said.status, said.err
    points, _ = read_points(run_in(root).journal)
    return [p.metrics["train/loss"] for p in points if "train/loss" in p.metrics]


@pytest.mark.slow
def test_options_change_no_loss_and_compression_does_a_little(train: Callable[..., Said], project: Path) -> None:
    """The hooks are at work on the CPU, where Lightning's own strategy passes over them."""
    plain = losses(train, project, "strategy.bucket_cap_mb=0.001")
    assert 8 == len(plain)
    assert plain == losses(train, project, "strategy.static_graph=true", "strategy.gradient_as_bucket_view=false")
    assert plain == losses(train, project, "strategy.find_unused_parameters=true")
    rounded = losses(train, project, "strategy.compression=fp16")
    factored = losses(train, project, "strategy.compression=powersgd", "strategy.powersgd_start=3")
    assert plain[:4] == factored[:4]  # until PowerSGD begins
    for compressed in (rounded, factored):
        assert plain != compressed
        assert pytest.approx(plain, rel=0.1) == compressed


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*TWO, "strategy.static_grph=true"], ["strategy.static_grph", "no argument", "'static_graph'"]),
        ([*TWO, "strategy.bucket_cap_mb=0"], ["strategy.bucket_cap_mb=0", "above 0"]),
        ([*TWO, "strategy.compression=powersg"], ["strategy.compression=powersg", "'powersgd'", "fp16"]),
        ([*TWO, "strategy.compression=bf16"], ["strategy.compression=bf16", "GPUs only", "Fix: strategy.compression="]),
        ([*TWO, "strategy.powersgd_start=1"], ["strategy.powersgd_start=1", "at least 2"]),
        (["strategy.compression=fp16"], ["strategy=auto takes no", "Fix: strategy=ddp strategy.compression=fp16"]),
        (["strategy=single", "strategy.foo=1"], ["strategy=single takes no 'foo'", "Fix: ~strategy.foo"]),
    ],
)
def test_mistakes_are_said_before_anything_starts(
    hpcexp: Callable[..., Said], overrides: list[str], said: list[str]
) -> None:
    """With the setting's name and a way out."""
    answer = hpcexp("plan", *overrides)
    assert 2 == answer.status
    assert [] == [part for part in said if part not in answer.err]


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["strategy.compression=powersgd"], "powersgd never begins: strategy.powersgd_start=1000 steps"),
        (["strategy.compression=powersgd", "strategy.powersgd_start=570"], "and the training has 570."),
        (["strategy.compression=powersgd", "strategy.powersgd_start=569"], ""),
        (["strategy.powersgd_start=1000"], ""),
        (["strategy.static_graph=true", "strategy.find_unused_parameters=true"], "_parameters=true does nothing"),
        (["strategy.find_unused_parameters=true"], ""),
        (["hardware.devices=1", "strategy.compression=powersgd"], ""),
    ],
)
def test_settings_that_do_nothing_are_warned_of(hpcexp: Callable[..., Said], overrides: list[str], warned: str) -> None:
    """In 570 steps of the default experiment."""
    said = hpcexp("plan", *TWO, *overrides)
    assert 0 == said.status
    assert bool(warned) == ("warning: strategy." in said.err)
    assert warned in said.err


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_compressed_run_is_continued_to_the_bit(
    train: Callable[..., Said], project: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """What PowerSGD remembers on each rank is in the checkpoint, and finds the same buckets again."""
    write_module(project, "killer", KILLER)
    asked = [
        *EXACT,
        *TWO,
        f"hardware.devices={ranks}",
        "hardware.share=2",
        "data.global_batch_size=120",
        "model.hidden=[64,32]",
        "strategy.bucket_cap_mb=0.01",
        "strategy.compression=powersgd",
        "strategy.powersgd_start=3",
        "tracking=off",
    ]
    whole = train(*asked, f"run.root={project / 'whole'}")
    assert 0 == whole.status, whole.err
    monkeypatch.setenv("KILLS", "5 SIGKILL 1,11 SIGTERM supervisor")
    for attempt in range(3):
        said = train(*asked, f"run.root={project / 'runs'}")
        assert (attempt == 2) == (said.status == 0), said
    assert values(run_in(project / "whole")) == values(run_in(project / "runs"))
    assert result(run_in(project / "whole")) == result(run_in(project / "runs"))
