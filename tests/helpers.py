"""What the tests of the command line share: commands in processes of their own, modules of a user's, waiting."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from hpcexp.rundir import RunDir, find_runs

if TYPE_CHECKING:
    from forked import ForkedProcess

REPOSITORY = Path(__file__).parent.parent
HEAVY = ("torch", "pytorch_lightning", "mlflow", "numpy", "pandas", "sklearn", "matplotlib")
"""What the planning side must not import."""

LEAN = ("launch.progress=none", "run.pictures=false")
"""Nothing beside the training that a test does not look at."""
WARM = "launch.isolation=warm"
"""Ranks that are forked from a server of the command's, which is forked itself where the command is."""
FAST = ("debug=fast", *LEAN)
"""A run of five steps that MLflow hears nothing of."""


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class TrainedRun:
    """A finished run in MLflow, and what its command printed."""

    project: Path
    run: RunDir
    said: Said


def environment(**more: str) -> dict[str, str]:
    """That of a user who has hpcexp, no GPU and no tracking server."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return {**env, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", **more}


def start(*argv: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """`hpcexp argv` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hpcexp", *argv],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str] | ForkedProcess, timeout_s: float = 240) -> Said:
    """What a started command said, once it has ended."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return Said(process.returncode, out, err)


def command(*argv: str, cwd: Path, **env: str) -> Said:
    """`hpcexp argv`, run to its end in a process of its own."""
    return ended(start(*argv, cwd=cwd, **env))


def python(code: str, cwd: Path) -> Said:
    """A program run to its end in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 240, poll_s: float = 0.02) -> None:
    """Return when `condition` holds; the test fails where it does not come to that."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout_s:g} s")
        time.sleep(poll_s)


def write_module(project: Path, name: str, code: str) -> None:
    """A user's module. Names are imported once per process: every test takes its own."""
    (project / f"{name}.py").write_text(dedent(code))
    importlib.invalidate_caches()


def write_conf(project: Path, files: dict[str, str]) -> None:
    """A user's own config files, by their paths below conf/."""
    for name, content in files.items():
        file = project / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(content))


def only_run(project: Path) -> RunDir:
    """The one run of a project."""
    [run] = find_runs(project / "runs")
    return run
