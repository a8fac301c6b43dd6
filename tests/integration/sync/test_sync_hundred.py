"""A hundred runs at once, synced by four processes into one database. `pytest -m soak`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from postgres import server_programs, serving_postgres
from record_support import finish, journalled, make_run, make_sweep, noted, query, set_state, write_steps
from test_sync_sweep import sync_process, tell, told_of

from hpcexp.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(0)]

SYNC_PROCESSES, RUNS, ROUNDS, STEPS = 4, 25, 6, 10


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that MLflow has never seen."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mlflow.db"
    elif server_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    else:
        with serving_postgres() as server:
            yield server.uri


def rows(uri: str, sql: str) -> list[tuple[object, ...]]:
    """Of either database."""
    if uri.startswith("sqlite"):
        return query(Path(uri.removeprefix("sqlite:///")), sql)
    import psycopg

    with psycopg.connect(uri) as connection:
        return list(connection.execute(sql.encode()).fetchall())


def test_a_hundred_runs_lose_nothing(tmp_path: Path, uri: str) -> None:
    """They go on writing while they are synced; every value arrives once, and every run ends as it did."""
    sweeps = [make_sweep(tmp_path, f"sweep-{i}") for i in range(SYNC_PROCESSES)]
    runs = [[make_run(tmp_path, uri, f"run-{i}-{j}", wait_s=120.0) for j in range(RUNS)] for i in range(SYNC_PROCESSES)]
    every: list[RunDir] = [run for some in runs for run in some]
    with ExitStack() as stack:
        sync_processes = [stack.enter_context(sync_process(sweep)) for sweep in sweeps]
        for process, some in zip(sync_processes, runs, strict=True):
            tell(process, *(told_of(run, seed="1") for run in some))
        for turn in range(ROUNDS):
            for run in every:
                write_steps(run, STEPS, first=1 + STEPS * turn)
        for run in every:
            finish(run)
        for sweep, process in zip(sweeps, sync_processes, strict=True):
            set_state(sweep, "finished")
            tell(process, {"end": True})
            process.stdin.close()  # type: ignore[union-attr]
        assert [0] * SYNC_PROCESSES == [process.wait(240) for process in sync_processes]
    found: dict[object, list[tuple[object, ...]]] = {}
    for run_id, *point in rows(uri, "SELECT run_uuid, key, step, value FROM metrics"):
        found.setdefault(run_id, []).append(tuple(point))
    for run in every:
        assert journalled(run) == sorted(found[noted(run, "run_id")]), run.path.name
    assert [("FINISHED", SYNC_PROCESSES * (RUNS + 1))] == rows(uri, "SELECT status, count(*) FROM runs GROUP BY status")
