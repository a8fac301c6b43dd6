"""A search's journal that somebody else has written, or a disk has damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from hpcexp.errors import RunError
from hpcexp.runs.records.status import RunState
from hpcexp.schema.sweep import Search
from hpcexp.sweep.search.study import JOURNAL, Study
from hpcexp.sweep.spec.spec import Interval, Objective, Spec

OBJECTIVES = (Objective("val/acc", "max"),)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], Study]:
    """The same study, opened again and again; at first with a trial that has finished and one that diverged."""
    spec = Spec("s", "", (), axes={"optimizer.lr": Interval(0.001, 0.1)}, search=Search("random"))

    def open_study() -> Study:
        return Study(spec, OBJECTIVES, tmp_path, project=tmp_path, max_epochs=1)

    study = open_study()
    for value in (0.5, None):
        trial = study.ask()
        assert trial is not None
        study.note_job(trial.number, trial.number + 1)
        study.tell(trial.number, RunState.FINISHED, [value])
    study.close()
    return open_study


def change(path: Path, kind: int, **fields: Any) -> None:
    """Fields of the first operation of a kind replaced."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines if line["op_code"] == kind).update(fields)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_whole_journal_is_read_with_infinities_and_a_torn_end(opened: Callable[[], Study], tmp_path: Path) -> None:
    """As Optuna writes them, and a full disk leaves it."""
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert 2 == opened().counts().finished


@pytest.mark.parametrize(
    ("op_code", "fields"),
    [
        (0, {"op_code": 99}),
        (0, {"directions": "max"}),
        (0, {"directions": [7]}),
        (2, {"user_attr": {"hpcexp.space": {"axes": [], "objectives": 3}}}),
        (2, {"user_attr": {"hpcexp.space": None, "hpcexp.seed": 1}}),
        (4, {"datetime_start": "yesterday"}),
        (4, {"study_id": 10**400}),
        (5, {"distribution": "{}"}),
        (5, {"param_value_internal": "fast"}),
        (6, {"values": [0.5, 0.25]}),
        (6, {"values": ["good"]}),
        (6, {"state": 99}),
        (8, {"user_attr": {"hpcexp.job": "first"}}),
        (8, {"user_attr": []}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_operation_of_optunas_is_named(
    opened: Callable[[], Study], tmp_path: Path, op_code: int, fields: dict[str, Any]
) -> None:
    """With the file and a way out, whatever Optuna would raise."""
    change(tmp_path / JOURNAL, op_code, **fields)
    with pytest.raises(RunError, match=r"(?s)study\.jsonl.* is damaged: .*Fix: "):
        opened()


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("[" * 200_000 + "\n"),
    ],
    ids=["FIFO", "directory", "endless", "deep"],
)
def test_what_is_no_journal_is_named_at_once(
    opened: Callable[[], Study], tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """Nothing waits for a FIFO's writer, or reads without end."""
    (tmp_path / JOURNAL).unlink()
    make(tmp_path / JOURNAL)
    with pytest.raises(RunError, match=r"(?s)study\.jsonl.* is damaged: .*Fix: "):
        opened()
