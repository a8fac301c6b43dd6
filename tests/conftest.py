"""Fixtures of the command line's tests: an empty project, `hpcexp` called in it, one trained run for all."""

from __future__ import annotations

import compileall
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest
from forked import end_server
from helpers import LEAN, REPOSITORY, Said, TrainedRun, command, only_run
from postgres import Server, server_programs, serving_postgres

from hpcexp.cli.main import run
from hpcexp.compose.composer import Composed, Composer

KEPT = re.compile(
    "PATH|PYTHONPATH|LD_LIBRARY_PATH|VIRTUAL_ENV|USER|LOGNAME|SHELL|TERM|HPCEXP_(FUZZ|SOAK|IMAGES).*"
    "|PYTEST_.*|CUDA_.*|NVIDIA_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|PIP_.*|UV_.*"
)
"""Variables of the environment that the tests' processes get. No other does: neither what a user has set for hpcexp,
MLflow, git or Python, nor an allocation, a launcher or a proxy that the tests happen to run in."""
DIRECTORIES = (
    *("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"),
    *("HPCEXP_DEVICE_LOCKS", "HPCEXP_CACHE", "MPLCONFIGDIR"),
)


@pytest.fixture(scope="session", autouse=True)
def _own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leases, temporary files, home, caches and environment of this session's own, for every process that it starts.

    So no test depends on the user's files and settings, and jobs that run on this machine leave the tests their cores.
    """
    place = tmp_path_factory.mktemp("own")
    directories = {name: place / name.lower() for name in DIRECTORIES}
    directories["HOME"].mkdir()
    get_temp_dir()  # multiprocessing removes its directory at this process's very end, when this one is gone
    # Not below pytest's directory, which other users may not enter: some tests start processes of theirs.
    with tempfile.TemporaryDirectory(prefix="hpcexp-", ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o1777)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if not KEPT.fullmatch(name)]:
                patch.delenv(name)
            for name, directory in {**directories, "TMPDIR": temporary}.items():
                patch.setenv(name, str(directory))
            patch.setenv("LC_ALL", "C.UTF-8")
            # Python takes a module for unchanged that is edited twice in a second and keeps its length, as tests do.
            patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
            patch.setattr(tempfile, "tempdir", None)
            yield


def pytest_configure(config: pytest.Config) -> None:
    """Compile hpcexp once, for all processes of the tests, which write no bytecode themselves."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(REPOSITORY / "hpcexp", quiet=2)
    # Threads of this process sleep while they wait, as those of ranks do: busy ones cost thirty times the work on cores
    # that others use, too.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when a test module imports torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that in the end no worker is left alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server for the tests of a file."""
    if server_programs() is None:
        pytest.skip("no PostgreSQL server is installed")
    with serving_postgres() as server:
        yield server


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


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> Iterator[None]:
    """What commands are forked from ends with the tests."""
    yield
    end_server()


@pytest.fixture
def compose(project: Path) -> Callable[..., Composed]:
    """The composition of overrides in the project."""
    return lambda *overrides: Composer(project).compose(list(overrides))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Two epochs of the default experiment with everything recorded. For looking at only: it is shared."""
    project = tmp_path_factory.mktemp("trained")
    asked = ["trainer.max_epochs=2", "optimizer.lr=0.01", "seed=3", "notes=Is it fast?", "tracking.tags.team=vision"]
    said = command("train", *asked, cwd=project)
    assert (0, "") == (said.status, said.err)
    return TrainedRun(project, only_run(project), said)
