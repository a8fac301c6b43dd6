"""The table of a sweep at work, as a terminal shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from training_plans import digits_plan

from hpcexp.rank_protocol import Progress
from hpcexp.sweep.report.live_view import Table
from hpcexp.sweep.store.jobs import Job
from hpcexp.sweep.store.ledger import LedgerEntry


@pytest.mark.parametrize("width", [80, 160])
def test_numbers_are_whole_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    """A long name gives way: what differs between jobs stands at its beginning."""
    monkeypatch.setenv("COLUMNS", str(width))
    plan = digits_plan(tmp_path)
    table = Table(200)
    try:
        for number in (7, 123):
            job = Job(LedgerEntry(number, (), (), None, plan.signature, plan.run_dir), plan)
            table.began(job)
            metrics = {"val/acc": 0.98765, "val/loss": 0.5, "train/loss": 0.4}
            told = Progress(0, 50, 200, "train", 1, 4, 0.123456, metrics)
            table.running[number].job.plan.__dict__["name"] = f"lr=0.01,hidden={number}-" + "long" * 30
            table.running[number].progress(told)
        console = Console(width=width)
        console.print(table._table())
    finally:
        table.close()
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if line.startswith("123")]
    assert len(row.rstrip()) <= width
    for cell in ("lr=0.01", "25 %", "0.1235", "val/acc 0.9877"):
        assert cell in row, lines
    assert "val/loss" not in row
