"""Pictures are drawn from what a run has."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from record_support import finish, make_run

from hpcexp.files.atomic import write_json
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal
from hpcexp.tracking.plots.axis_ticks import linear_ticks, log_ticks
from hpcexp.tracking.plots.run_plots import draw_pictures


def size(png: Path) -> tuple[int, int]:
    """Width and height of a PNG file (PNG specification, 11.2.2)."""
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_a_run_gets_its_curves_and_confusion_matrix(tmp_path: Path) -> None:
    """One picture for each metric, whatever its splits."""
    run = make_run(tmp_path, None, steps=300)
    finish(run)
    drawn = draw_pictures(run, "digits_mlp · lr=0.01")
    assert [path.name for path in drawn] == ["loss.png", "lr.png", "confusion.png"]
    assert min(side for path in drawn for side in size(path)) > 500
    assert sorted(run.plots.iterdir()) == sorted(drawn)


def test_values_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    """A run that diverged is drawn as far as it went."""
    run = RunDir(tmp_path)
    journal = Journal(run.journal)
    journal.append((step, {"train/loss": float("nan") if step > 120 else 1.0 + step % 2}) for step in range(300))
    journal.append([(1, {"val/loss": float("inf")}), (2, {"val/loss": float("inf")})])
    journal.close()
    assert [path.name for path in draw_pictures(run, "diverged")] == ["loss.png"]


def test_a_hundred_classes_fit_into_one_picture(tmp_path: Path) -> None:
    """Without a number in each cell."""
    run = RunDir(tmp_path)
    matrix = [[5 if row == column else 0 for column in range(100)] for row in range(100)]
    write_json(run.confusion, {"labels": [f"class {i}" for i in range(100)], "matrix": matrix})
    (picture,) = draw_pictures(run, "many")
    assert max(size(picture)) < 2400


def test_a_run_that_logged_nothing_has_no_pictures(tmp_path: Path) -> None:
    """Nothing to draw is no error."""
    assert draw_pictures(RunDir(tmp_path), "nothing") == []


def test_a_curve_over_many_decades_is_drawn_with_powers_of_ten(tmp_path: Path) -> None:
    """A learning rate that decays to almost nothing, and one that stays."""
    run = RunDir(tmp_path)
    journal = Journal(run.journal)
    journal.append((step, {"train/lr": 10.0 ** -(step / 20), "train/const": 7.0}) for step in range(200))
    journal.close()
    assert [path.name for path in draw_pictures(run, "decays")] == ["const.png", "lr.png"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.2, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (0.49, 2.31, ["0.5", "1.0", "1.5", "2.0"]),
        (-7.0, 101.0, ["0", "25", "50", "75", "100"]),
        (0.98800, 0.98803, ["0.98800", "0.98801", "0.98802", "0.98803"]),
        (2.9e6, 8.2e6, ["4e+06", "6e+06", "8e+06"]),
    ],
)
def test_an_axis_has_round_numbers(low: float, high: float, expected: list[str]) -> None:
    """As many digits as tell them apart."""
    assert [text for _, text in linear_ticks(low, high, 5)] == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.004, 0.6, ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
        (3e-7, 3e-2, ["1e-06", "1e-05", "0.0001", "0.001", "0.01"]),
    ],
)
def test_a_logarithmic_axis_has_powers_of_ten(low: float, high: float, expected: list[str]) -> None:
    """And numbers in between where those are few."""
    assert [text for _, text in log_ticks(low, high)] == expected
