"""What several seeds tell, held against SciPy, and the numbers that a run is compared by."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from record_support import finish, make_run, write_steps

from hpcexp.compare.metrics import guessed_mode, numbers, value_of
from hpcexp.compare.statistics import best_first, grouped, half_width, mean, mean_text, paired_p
from hpcexp.files.documents import convert
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal
from hpcexp.runs.records.results import Summary, read_summary
from hpcexp.runs.series import MAX_POINTS, read_curve

OURS = {"1": 0.91, "2": 0.93, "3": 0.92, "4": 0.95}
THEIRS = {"1": 0.90, "2": 0.91, "3": 0.92, "5": 0.99}


def test_the_interval_is_students() -> None:
    """As SciPy has it of the same values."""
    from scipy import stats

    values = list(OURS.values())
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean(values), scale=stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2)
    assert half_width([1.0]) is None


def test_pairs_are_seeds_that_both_have() -> None:
    """As SciPy's paired t-test of those three."""
    from scipy import stats

    expected = stats.ttest_rel([0.91, 0.93, 0.92], [0.90, 0.91, 0.92]).pvalue
    assert paired_p(OURS, THEIRS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"1": 0.5}, {"1": 0.4}, None),
        ({"1": 0.5, "2": 0.6}, {"3": 0.4, "4": 0.5}, None),
        ({"1": 0.5, "2": 0.5}, {"1": 0.5, "2": 0.5}, 1.0),
        ({"1": 0.75, "2": 0.75}, {"1": 0.5, "2": 0.5}, None),
    ],
    ids=["one pair", "no seed in common", "equal", "always the same difference"],
)
def test_pairs_that_no_test_is_for(ours: dict[str, float], theirs: dict[str, float], expected: float | None) -> None:
    """Too few of them, or without any spread."""
    assert expected == paired_p(ours, theirs)


def test_a_mean_says_how_sure_it_is() -> None:
    """Where it is of several."""
    assert ["0.9275 ± 0.027 (4)", "0.5", "-"] == [mean_text(list(OURS.values())), mean_text([0.5]), mean_text([])]


def test_the_best_stands_first_and_what_has_no_value_last() -> None:
    """Equal ones stay in their order."""
    values = {"a": 0.2, "b": None, "c": 0.3, "d": 0.2, "e": None}
    assert ["c", "a", "d", "b", "e"] == best_first(values, values.get, "max")
    assert ["a", "d", "c", "b", "e"] == best_first(values, values.get, "min")


def test_groups_keep_the_order_in_which_they_came() -> None:
    """Of the groups and in them."""
    assert {"b": ("bx", "by"), "a": ("ax",)} == grouped(["bx", "ax", "by"], lambda item: item[0])


def test_a_summary_has_names_for_its_numbers(tmp_path: Path) -> None:
    """Test metrics, the best of what was monitored, and the rest dotted; what is no number has none."""
    summary = {
        "test": {"test/acc": 0.9, "test/loss": math.inf},
        "best": {"monitor": "val/acc", "value": 0.8, "epoch": 3},
        "durations": {"fit_s": 2},
        "diverged": False,
    }
    expected = {"test/acc": 0.9, "val/acc": 0.8, "best.value": 0.8, "best.epoch": 3.0, "durations.fit_s": 2.0}
    assert expected == numbers(convert(summary, Summary))


def test_what_no_summary_has_is_read_from_the_journal(tmp_path: Path) -> None:
    """Of a validation the best, of all else the last."""
    run = make_run(tmp_path, None, steps=3)
    finish(run)
    journal = Journal(run.journal)
    journal.append([(700, {"val/loss": 0.3}), (710, {"val/loss": 0.2}), (720, {"val/loss": 0.4})])
    journal.close()
    found = [value_of(run, metric, "min") for metric in ("test/acc", "val/loss", "train/loss", "val/nothing")]
    assert [0.985, 0.2, 1 / 3, None] == found
    assert 0.985 == numbers(read_summary(run))["test/acc"]


def test_a_long_curve_is_read_with_its_last_value(tmp_path: Path) -> None:
    """Thinning is for pictures."""
    run = RunDir(tmp_path)
    write_steps(run, MAX_POINTS + 2)
    curve = read_curve(run.journal, "train/loss")
    assert [MAX_POINTS + 2, 1 / (MAX_POINTS + 2)] == [len(curve.steps), curve.values[-1]]


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("val/acc", "max"), ("test/loss", "min"), ("durations.fit_s", "min"), ("num_params", "min"), ("f1", "max")],
)
def test_the_name_of_a_metric_tells_which_way_is_better(metric: str, mode: str) -> None:
    """Where nothing else does."""
    assert mode == guessed_mode(metric)
