"""Every benchmark runs whole: one round of its smallest size, whose figures mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment

from benchmarks.__main__ import NAMES

HEAVY = {"coldstart", "compare", "ddp", "launching", "planning", "recording", "sync", "sweeps"}
"""They start many processes that import torch or MLflow."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in HEAVY)) for n in NAMES])
def test_a_benchmark_runs_whole(name: str, tmp_path: Path) -> None:
    """Its table has a value in each line."""
    command = [sys.executable, "-m", "benchmarks", name, "--smallest", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    _, _, *lines = done.stdout.splitlines()
    assert lines
    assert all(line.split(" | ")[1] for line in lines)
    assert [] == list(tmp_path.iterdir())
