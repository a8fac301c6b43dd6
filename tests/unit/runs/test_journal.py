"""The journal keeps every metric through kills and full disks."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcexp.media.recorder import Recorder
from hpcexp.runs.journal import Journal, last_values, read_points
from hpcexp.runs.series import read_series


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a journal."""
    return tmp_path / "metrics.jsonl"


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `num_bytes`: the kernel writes a part, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_points_come_back_as_they_were_written(path: Path) -> None:
    """Values keep every bit, and each line its own time."""
    journal = Journal(path)
    journal.append([(1, {"train/loss": 0.1 + 0.2}), (2, {"train/loss": 1e-300, "epoch": 1})], times_ms=[10, 20])
    journal.close()
    points, offset = read_points(path)
    assert points == [(10, 1, {"train/loss": 0.1 + 0.2}), (20, 2, {"train/loss": 1e-300, "epoch": 1.0})]
    assert path.stat().st_size == offset


def test_values_that_json_lacks_are_written_as_words(path: Path) -> None:
    """Each line is JSON for any reader."""
    journal = Journal(path)
    journal.append([(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})])
    journal.close()
    assert json.loads(path.read_text())["m"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.5}
    metrics = read_points(path)[0][0].metrics
    assert math.isnan(metrics.pop("a"))
    assert metrics == {"b": math.inf, "c": -math.inf, "d": 1.5}


def test_times_never_go_back(path: Path) -> None:
    """Neither with the clock nor from one try of a run to the next."""
    first = Journal(path)
    first.append([(1, {"a": 1.0}), (2, {"a": 1.0})], times_ms=[50, 40])
    first.close()
    second = Journal(path)
    second.append([(3, {"a": 1.0})], times_ms=[30])
    second.close()
    assert [point.time_ms for point in read_points(path)[0]] == [50, 50, 50]


def test_a_torn_last_line_waits_for_its_end(path: Path) -> None:
    """A reader beside the writer takes whole lines only, and the rest later."""
    path.write_text('{"t":1,"s":1,"m":{"a":1}}\n{"t":2,"s":2,"m"')
    points, offset = read_points(path)
    assert [point.step for point in points] == [1]
    with path.open("a") as file:
        file.write(':{"a":2}}\n')
    assert [point.step for point in read_points(path, offset)[0]] == [2]


def test_a_torn_last_line_is_cut_by_the_next_try(path: Path) -> None:
    """What a killed run left half written does not spoil the line after it."""
    path.write_text('{"t":1,"s":1,"m":{"a":1}}\n{"t":2,"s":2,"m"')
    journal = Journal(path)
    journal.append([(2, {"a": 2.0})])
    journal.close()
    assert [(point.step, point.metrics) for point in read_points(path)[0]] == [(1, {"a": 1.0}), (2, {"a": 2.0})]


@pytest.mark.parametrize(
    "line", ["", "nonsense", "[]", '{"t":1}', '{"t":1,"s":1,"m":{"a":"x"}}', '{"t":1,"s":1,"m":3}']
)
def test_a_line_that_is_no_journal_line_is_passed_over(path: Path, line: str) -> None:
    """One damaged line costs that line only."""
    path.write_text(line + '\n{"t":1,"s":7,"m":{"a":1}}\n')
    points, offset = read_points(path)
    assert [point.step for point in points] == [7]
    assert path.stat().st_size == offset


def test_reading_goes_on_where_a_limit_ended_it(path: Path) -> None:
    """Long journals are read in parts."""
    journal = Journal(path)
    journal.append((step, {"a": 0.0}) for step in range(10))
    journal.close()
    first, offset = read_points(path, 0, limit=4)
    rest, _ = read_points(path, offset)
    assert [point.step for point in [*first, *rest]] == list(range(10))
    assert len(first) == 4


def test_no_journal_reads_as_no_points(tmp_path: Path) -> None:
    """A run that has not logged yet is no error."""
    assert read_points(tmp_path / "none.jsonl", 5) == ([], 5)


def test_a_full_disk_is_said_once_and_loses_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training goes on; whole lines only are in the file; the rest follows when there is room."""
    journal = Journal(path)
    journal.append([(1, {"a": 1.0})])
    before = path.read_bytes()
    with disk_of(len(before) + 10):
        journal.append([(2, {"a": 2.0})])
        journal.append([(3, {"a": 3.0})])
        assert path.read_bytes() == before
    journal.append([(4, {"a": 4.0})])
    journal.close()
    assert [point.step for point in read_points(path)[0]] == [1, 2, 3, 4]
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert str(path) in said


def test_every_line_written_before_a_kill_is_there(path: Path) -> None:
    """kill -9 takes nothing that `append` has returned from."""
    code = (
        "import os, sys; from pathlib import Path; from hpcexp.runs.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "[journal.append([(step, {'a': 1.0})]) for step in range(200)]\n"
        "os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False).returncode == -9
    assert [point.step for point in read_points(path)[0]] == list(range(200))


def test_steps_done_again_replace_their_curve(path: Path) -> None:
    """A run continued from a checkpoint draws one line, not a zigzag."""
    journal = Journal(path)
    journal.append((step, {"a": 1.0}) for step in (1, 2, 3, 4))
    journal.append((step, {"a": 2.0}) for step in (3, 4, 5))
    journal.close()
    curve = read_series(path)["a"]
    assert list(zip(curve.steps, curve.values, strict=True)) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_steps_done_again_are_not_written_twice(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They come out the same; nothing is said."""
    once = [(step, {"a": step / 3, "b": math.nan}) for step in (1, 2, 3)]
    journal = Journal(path)
    journal.append(once)
    journal.close()
    again = Journal(path, redone_from=2)
    again.append([*once[1:], (4, {"a": 4.0})])
    again.close()
    assert [point.step for point in read_points(path)[0]] == [1, 2, 3, 4]
    assert "" == capsys.readouterr().err


def test_a_step_that_comes_out_otherwise_is_said_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that resumes with other code is no longer one run."""
    journal = Journal(path)
    journal.append((step, {"a": 1.0}) for step in (1, 2, 3))
    journal.close()
    again = Journal(path, redone_from=2)
    again.append((step, {"a": 2.0}) for step in (2, 3))
    again.close()
    said = capsys.readouterr().err
    assert 1 == said.count("a at step 2 came out as 2, and as 1 in the attempt before")
    assert 1 == said.count("WARNING")
    assert [1.0, 1.0, 1.0] == [point.metrics["a"] for point in read_points(path)[0]]


def test_a_long_curve_is_thinned(path: Path) -> None:
    """Memory and pictures stay small whatever a run's length, from its first step to its last ones."""
    journal = Journal(path)
    journal.append((step, {"a": 1.0}) for step in range(50_000))
    journal.close()
    steps = read_series(path)["a"].steps
    assert len(steps) <= 20_000
    assert steps[0] == 0
    assert steps[-1] >= 49_990


def test_the_lightning_logger_writes_the_journal(path: Path) -> None:
    """`self.log` of a user's module ends up where everything else is; other ranks write nothing."""
    from hpcexp.train.engine.journal_logger import JournalLogger

    journal = Journal(path)
    logger = JournalLogger(journal, Recorder(None, 0, lambda: 0), "digits", "lr=0.1", path.parent)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"mine": 2.0}, step=5)
    logger.finalize("success")
    JournalLogger(None, Recorder(None, 1, lambda: 0), "digits", "lr=0.1", path.parent).log_metrics(
        {"mine": 3.0}, step=5
    )
    journal.close()
    assert [(point.step, point.metrics) for point in read_points(path)[0]] == [(5, {"mine": 2.0})]
    assert (logger.name, logger.version) == ("digits", "lr=0.1")


def test_the_last_value_of_each_metric_is_found(path: Path) -> None:
    """Of some splits, at its own step; a torn line does not count."""
    assert last_values(path, "val") == []
    journal = Journal(path)
    journal.append([(1, {"train/loss": 3.0}), (2, {"val/loss": 2.0, "val/acc": 0.5, "train/loss": 2.5})], [1, 2])
    journal.append([(4, {"val/loss": 1.0}), (5, {"test/acc": 0.9})], [3, 4])
    journal.close()
    with path.open("a") as file:
        file.write('{"t":5,"s":6,"m":{"val/loss":')
    assert last_values(path, "val", "test") == [
        (3, 4, {"val/loss": 1.0}),
        (2, 2, {"val/acc": 0.5}),
        (4, 5, {"test/acc": 0.9}),
    ]
