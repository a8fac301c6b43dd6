"""The planning side is light: what its commands have imported when they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import FAST, HEAVY, TrainedRun, python


@pytest.mark.parametrize(
    "argv",
    [
        ("--help",),
        ("plan",),
        ("plan", "-m", "seed=1,2"),
        ("plan", "model=cnn", "--blame", "optimizer.lr"),
        ("train", "launch=dry"),
        ("train", "--help"),
        ("train", "--cfg", "job"),
        ("runs",),
        ("help", "trainer"),
        ("ui", "--help"),
        ("reproduce", "--help"),
    ],
    ids=" ".join,
)
def test_planning_imports_nothing_heavy(tmp_path: Path, argv: tuple[str, ...]) -> None:
    """In a process that does nothing else."""
    assert "[]" == imported_by(argv, tmp_path)


@pytest.mark.parametrize(
    "argv", [("show", "last"), ("runs", "--json"), ("sync",), ("verify", "last"), ("why", "last")], ids=" ".join
)
def test_looking_at_runs_imports_nothing_heavy(trained: TrainedRun, argv: tuple[str, ...]) -> None:
    """Where everything is synced already, MLflow is not needed either."""
    assert "[]" == imported_by(argv, trained.project)


@pytest.mark.slow
def test_the_supervisor_of_a_run_stays_light(tmp_path: Path) -> None:
    """It waits for processes that import what they need."""
    assert "[]" == imported_by(("train", *FAST), tmp_path)


def imported_by(argv: tuple[str, ...], cwd: Path) -> str:
    """The heavy packages in `sys.modules` after a command."""
    code = f"""
    import sys
    from hpcexp.cli.main import run
    try:
        status = run({argv!r})
    except SystemExit as e:
        status = e.code
    print(sorted(set({HEAVY!r}) & set(sys.modules)))
    sys.exit(status)
    """
    said = python(code, cwd)
    assert (0, "") == (said.status, said.err)
    return said.out.splitlines()[-1]
