"""Snapshots in a repository of restic."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said
from record_support import journalled

from hpcexp.rundir import find_runs

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


@pytest.fixture
def repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of a repository of restic, with its password."""
    monkeypatch.setenv("RESTIC_PASSWORD", "s3cr3t")
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(project / "cache"))
    return str(project / "repository")


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
def test_a_repository_of_restic_takes_and_gives_the_same(
    runs: Path, repository: str, hpcexp: Callable[..., Said]
) -> None:
    """Checked by hpcexp's own sums as well; nothing is left beside the runs."""
    said = hpcexp("backup", f"restic:{repository}")
    assert 2 == said.status
    assert f"restic init --repo {repository}" in said.err
    subprocess.run(["restic", "init", "--repo", repository, "--quiet"], check=True)
    for _ in range(2):
        said = hpcexp("backup", f"restic:{repository}", "--keep", "1")
        assert (0, "") == (said.status, said.err)
    assert not (runs / ".backup").exists()
    assert 0 == hpcexp("backup", f"restic:{repository}", "--verify").status
    said = hpcexp("restore", f"restic:{repository}", "--root", "back/runs")
    assert (0, "") == (said.status, said.err)
    [run], [before] = find_runs(runs.parent / "back/runs"), find_runs(runs)
    assert journalled(before) == journalled(run)


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
def test_a_repository_of_restic_keeps_runs_and_a_server_apart(
    runs: Path, server: Path, repository: str, hpcexp: Callable[..., Said]
) -> None:
    """Both stay with `--keep 1`, and come back without `--at`; what is not there is said."""
    subprocess.run(["restic", "init", "--repo", repository, "--quiet"], check=True)
    target = f"restic:{repository}"
    assert 0 == hpcexp("backup", target, "--root", "runs", "--server", "server").status
    assert 0 == hpcexp("backup", target, "--server", "server", "--keep", "1").status
    for _ in range(2):
        said = hpcexp("backup", target, "--keep", "1")
        assert (0, "") == (said.status, said.err)
    listed = subprocess.run(["restic", "snapshots", "--repo", repository, "--json"], capture_output=True, check=True)
    tags = [{*snapshot["tags"]} - {"hpcexp"} for snapshot in json.loads(listed.stdout)]
    assert [{"runs"}, {"runs+server"}, {"server"}] == sorted(tags, key=str)
    for options in (["--root", "back/runs"], ["--server", "server", "--force"]):
        said = hpcexp("restore", target, *options)
        assert (0, "") == (said.status, said.err)
    assert "key" == (server / "secret").read_text()
    subprocess.run(["restic", "forget", "--repo", repository, "--tag", "runs+server", "--keep-tag", "none"], check=True)
    said = hpcexp("restore", target, "--root", "b/runs", "--server", "b/server")
    assert 2 == said.status
    assert f"{repository} has no snapshot of `hpcexp backup` with runs and server. There are: " in said.err
