"""Fixtures of the command line's tests: an empty project, `hpcexp` called in it, one trained run for all."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import LEAN, Said, command, only_run

from hpcexp.cli.main import run
from hpcexp.compose.composer import Composed, Composer
from hpcexp.rundir import RunDir


@pytest.fixture(scope="session", autouse=True)
def _slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slots, a cache and a key of these tests' own: another session's jobs do not take their cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPCEXP_SLOTS", str(tmp_path_factory.mktemp("slots") / "slots"))
        patch.setenv("HPCEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Ctrl-C reaches the commands under test: a shell has what it starts with `&` ignore it, and that is inherited."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, on a machine without GPUs and tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def hpcexp(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`hpcexp ARGUMENT…` in the project, in this process."""

    def call(*argv: str) -> Said:
        capsys.readouterr()
        handlers = list(logging.getLogger().handlers)
        try:
            status = run(argv)
        except SystemExit as e:  # argparse: --help, or a flag that does not exist
            status = int(e.code or 0)
        # Hydra's --info logs to the stdout of its time, which is another test's by the next call.
        logging.getLogger().handlers[:] = handlers
        printed = capsys.readouterr()
        return Said(status, printed.out, printed.err)

    return call


@pytest.fixture
def train(hpcexp: Callable[..., Said]) -> Callable[..., Said]:
    """`hpcexp train OVERRIDE…` in the project, in this process; ranks are forked from one server for all tests.

    For what is not about a process of its own: it costs a tenth of one that imports torch.
    """
    return lambda *overrides: hpcexp("train", "launch.isolation=warm", *LEAN, *overrides)


@pytest.fixture
def compose(project: Path) -> Callable[..., Composed]:
    """The composition of overrides in the project."""
    return lambda *overrides: Composer(project).compose(list(overrides))


@dataclass(frozen=True)
class TrainedRun:
    """A finished run in MLflow, and what its command printed."""

    project: Path
    run: RunDir
    said: Said


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Two epochs of the default experiment with everything recorded. For looking at only: it is shared."""
    project = tmp_path_factory.mktemp("trained")
    asked = ["trainer.max_epochs=2", "optimizer.lr=0.01", "seed=3", "notes=Is it fast?", "tracking.tags.team=vision"]
    said = command("train", *asked, cwd=project)
    assert (0, "") == (said.status, said.err)
    return TrainedRun(project, only_run(project), said)
