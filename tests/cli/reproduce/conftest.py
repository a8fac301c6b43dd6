"""A project under git, a run of one that is not, and where reruns are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkouts import KILL, MODEL, NET, SHARDED, STALL, git
from helpers import FAST, Said, only_run, write_module

from hpcexp.rundir import RunDir


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where reruns are made: nothing is left there when a test ends."""
    place = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert [] == list(place.glob("hpcexp-reproduce-*"))


@pytest.fixture
def checkout(project: Path) -> Path:
    """The project as a git repository with a commit."""
    git(project, "init", "-q")
    (project / ".gitignore").write_text("__pycache__/\nruns/\nshards/\nmark\n")
    write_module(project, "part_0", "WIDTH = 8")
    write_module(project, "net_0", NET.format(part="part_0"))
    write_module(project, "kill", KILL)
    write_module(project, "stall", STALL)
    write_module(project, "sharded_r", SHARDED)
    git(project, "add", ".")
    git(project, "commit", "-qm", "Begin")
    return project


@pytest.fixture
def run(project: Path, train: Callable[..., Said]) -> RunDir:
    """A run of a directory that is no repository."""
    write_module(project, "part_0", "WIDTH = 8")
    write_module(project, "net_0", NET.format(part="part_0"))
    assert 0 == train(*FAST, *MODEL).status
    return only_run(project)
