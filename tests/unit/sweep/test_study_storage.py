"""The storage of a study: results arrive once whoever dies or is away, and damage is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment
from postgres import Server
from studies import (
    _closed,  # noqa: F401 - a fixture
    opened,
    run,
    spec_of,
)

from hpcexp.errors import ConfigError, RunError
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.search.retry_queue import RetryQueue
from hpcexp.sweep.search.study import JOURNAL


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """Of each kind, as `search.storage` has it."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").uri)
    return {"journal": None, "sqlite": "sqlite:///studies/mine.db"}[request.param]


def test_telling_twice_is_as_telling_once(tmp_path: Path, storage: str | None) -> None:
    """A driver that died after the study knew, and before it could note so, tells again."""
    spec = spec_of(storage=storage, study="twice")
    study = opened(tmp_path, spec)
    run(study, 2)
    again = opened(tmp_path, spec)
    again.tell(0, RunState.FINISHED, [0.7])
    again.tell(1, RunState.FAILED)
    assert [0.0, 0.1] == [trial.value for trial in again.optuna.trials]


def test_a_study_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    """It may hold anything."""
    import optuna

    storage = f"sqlite:///{tmp_path}/theirs.db"
    optuna.create_study(storage=storage, study_name="s").ask().suggest_float("x", 0, 1)
    with pytest.raises(ConfigError, match="not made by hpcexp"):
        opened(tmp_path, spec_of(storage=storage))


WORKER = """
from hpcexp.runs.records.status import RunState
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from studies import ACC, BOTH, LR, FLAT, MODEL, OPEN, WIDTH, AXES, drawn, opened, run, spec_of
from studies import _closed  # noqa: F401 - a fixture
storage = sys.argv[3] if sys.argv[3] != "-" else None
study = opened(Path(sys.argv[2]), spec_of(trials=30, storage=storage, study="crowd", pruner="median"))
while (trial := study.ask()) or study.problem:
    if trial:
        study.note_job(trial.number, trial.number + 1)
        study.report(trial.number, 1, float(trial.number))
        study.tell(trial.number, RunState.FINISHED, [float(trial.number)])
sys.exit(study.settle(30) is not None)
"""


@pytest.mark.slow
def test_drivers_of_one_study_lose_nothing(tmp_path: Path, storage: str | None) -> None:
    """Three processes make it, ask and tell at the same time: thirty trials, each told once, no point twice."""
    command = [
        sys.executable,
        "-c",
        WORKER,
        ":".join(map(str, Path(__file__).parents[:3])),
        str(tmp_path),
        storage or "-",
    ]
    workers = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    assert [(0, "")] * 3 == [(w.wait(60), w.communicate()[0]) for w in workers]
    study = opened(tmp_path, spec_of(trials=30, storage=storage, study="crowd"))
    assert (30, 0, 0, 0) == tuple(vars(study.counts()).values())
    told = [t for t in study.optuna.trials if "hpcexp.surplus" not in t.user_attrs]
    assert [float(t.number) for t in told] == [t.value for t in told] == [t.intermediate_values[1] for t in told]
    assert [t.number + 1 for t in told] == [t.user_attrs["hpcexp.job"] for t in told]
    assert 30 == len({tuple(t.params.values()) for t in told})


def test_results_wait_for_a_database_that_is_away(tmp_path: Path, postgres: Server) -> None:
    """No call waits for it; once it is back it gets every result."""
    study = opened(tmp_path, spec_of("tpe", storage=postgres.uri, study="away", pruner="median"))
    trial = study.ask()
    assert trial is not None
    postgres.stop()
    try:
        assert not study.report(trial.number, 1, 0.5)
        study.tell(trial.number, RunState.FINISHED, [0.5])
        assert "127.0.0.1" in (study.problem or "")
        assert "s3cr3t" not in (study.problem or "")
        assert study.ask() is None
        assert 0 == study.counts().finished
    finally:
        postgres.start()
    assert study.settle(30) is None
    assert (1, 0, 0, 0) == tuple(vars(study.counts()).values())
    assert {1: 0.5} == study.optuna.trials[0].intermediate_values
    assert study.ask() is not None


def test_a_storage_that_cannot_be_used_is_told_without_its_password(tmp_path: Path, postgres: Server) -> None:
    """A wrong password, nobody there, no such database, no room for a file."""
    wrong = {
        postgres.uri.replace("s3cr3t", "0ther"): "password authentication failed",
        postgres.uri.replace("/postgres", "/none"): 'database "none" does not exist',
        "postgresql://ada:0ther@127.0.0.1:1/db": "refused",
        "sqlite:////proc/none/study.db": "No such file",
    }
    for uri, told in wrong.items():
        with pytest.raises(RunError) as caught:
            opened(tmp_path, spec_of(storage=uri))
        assert told in str(caught.value)
        assert "\nFix: " in str(caught.value)
        assert "0ther" not in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


def test_a_line_torn_by_a_full_disk_does_not_spoil_the_journal(tmp_path: Path) -> None:
    """It is cut off before the next one."""
    study = opened(tmp_path, spec_of())
    run(study, 1)
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":5,"stud')
    run(study, 1)
    assert 2 == opened(tmp_path, spec_of()).counts().finished


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    """Where it is, and what to do."""
    (tmp_path / JOURNAL).write_text("nonsense\nmore\n")
    with pytest.raises(RunError, match=r"study\.jsonl is damaged"):
        opened(tmp_path, spec_of())


def test_messages_keep_their_order_and_wait_longer_each_time() -> None:
    """Between tries nothing is tried."""
    now, sent, is_down, tries = [0.0], [], [True], [0]

    def message(word: str) -> None:
        tries[0] += 1
        if is_down[0]:
            raise OSError("away")
        sent.append(word)

    outbox = RetryQueue(lambda: message("probe"), (OSError,), str, clock=lambda: now[0])
    assert not outbox.put(lambda: message("a"))
    assert not outbox.put(lambda: message("b"))
    assert 1 == tries[0]
    now[0] = 1.5
    assert not outbox.send()
    assert (2, 1.5) == (tries[0], outbox.silent_s())
    now[0], is_down[0] = 3.0, False
    assert not outbox.send()
    now[0] = 4.0
    assert outbox.send()
    assert ["probe", "a", "b"] == sent
    assert None is outbox.problem
