"""Claims and the ledger of a sweep: one driver has a job, numbers stay, a dead driver holds nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_json
from hpcexp.rundir import SweepDir
from hpcexp.sweep.store.claims import STALE_S, Claims
from hpcexp.sweep.store.ledger import Ledger, LedgerEntry
from hpcexp.tracking.sync.sweep_upload import members


def opened(place: Path) -> Claims:
    claims = Claims(place)
    claims.open()
    return claims


def entry(*overrides: str, job: int = 0, trial: int | None = None) -> LedgerEntry:
    return LedgerEntry(job, overrides, ("base=1",), trial, "f" * 64, f"/runs/{'-'.join(overrides)}")


def test_a_job_is_had_by_one_driver(tmp_path: Path) -> None:
    """The other is told who has it, and gets it afterwards."""
    first, second = opened(tmp_path), opened(tmp_path)
    assert None is first.take("1")
    holder = second.take("1")
    assert holder is not None
    assert os.getpid() == holder.pid
    first.release("1")
    assert None is second.take("1")


def dies_holding(place: Path) -> None:
    Claims(place).open()
    claims = opened(place)
    claims.take("1")
    os.kill(os.getpid(), 9)


def test_what_a_dead_driver_held_is_free(tmp_path: Path) -> None:
    """Killed, it says nothing to anybody."""
    driver = multiprocessing.get_context("fork").Process(target=dies_holding, args=(tmp_path,))
    driver.start()
    driver.join()
    assert (tmp_path / "claims" / "1").exists()
    assert None is opened(tmp_path).take("1")


@pytest.mark.parametrize(("age_s", "is_free"), [(0.0, False), (STALE_S + 10, True)])
def test_a_driver_elsewhere_lives_while_it_touches_its_file(tmp_path: Path, age_s: float, is_free: bool) -> None:
    """Whether its process is there cannot be asked of another machine."""
    claims = opened(tmp_path)
    claims.take("1")
    file = tmp_path / "drivers" / f"{claims.token}.json"
    write_json(file, {"host": "elsewhere", "pid": 1, "started": 0.0})
    then = file.stat().st_mtime - age_s
    os.utime(file, (then, then))
    assert is_free is (opened(tmp_path).take("1") is None)


def test_who_has_slept_too_long_learns_what_was_taken(tmp_path: Path) -> None:
    """It must leave these jobs alone."""
    asleep = opened(tmp_path)
    asleep.take("1")
    asleep.take("2")
    file = tmp_path / "drivers" / f"{asleep.token}.json"
    write_json(file, {"host": "elsewhere", "pid": 1, "started": 0.0})
    os.utime(file, (0, 0))
    assert None is opened(tmp_path).take("1")
    asleep._next_beat = 0.0
    assert ["1"] == asleep.beat()
    assert [] == asleep.beat()


RACE = """
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from hpcexp.sweep.store.claims import Claims
place = Path(sys.argv[1])
claims = Claims(place)
claims.open()
for number in range(40):
    if claims.take(str(number)) is None:
        with (place / "taken").open("a") as file:
            file.write(f"{number}\\n")
print("done", flush=True)
sys.stdin.read()  # its claims would be free if it ended
"""


def test_no_job_is_had_twice_in_a_race(tmp_path: Path) -> None:
    """Four drivers take forty jobs that a dead one had held."""
    dead = opened(tmp_path)
    for number in range(40):
        dead.take(str(number))
    (tmp_path / "drivers" / f"{dead.token}.json").unlink()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], **pipes) for _ in range(4)]  # type: ignore[call-overload]
    assert [b"done\n"] * 4 == [racer.stdout.readline() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(map(str, range(40))) == sorted((tmp_path / "taken").read_text().split())


def test_numbers_are_given_once_and_kept(tmp_path: Path) -> None:
    """A job that is known keeps its number, whoever asks; new ones get the next; a search may ask for a point twice."""
    claims = opened(tmp_path)
    first = Ledger(tmp_path, claims).enter([entry("lr=1"), entry("lr=2")])
    assert [1, 2] == [e.job for e in first]
    later = Ledger(tmp_path, opened(tmp_path)).enter([entry("lr=2"), entry("lr=3"), entry("lr=1", trial=0)])
    assert [2, 3, 4] == [e.job for e in later]
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [1, 2, 3, 4] == [line["job"] for line in lines]


def test_a_ledger_moves_with_the_runs_beside_it(tmp_path: Path) -> None:
    """It finds those within its directory of runs where this is now, others where they were."""
    place = tmp_path / "runs" / "sweeps" / "s"
    place.mkdir(parents=True)
    inside, outside = tmp_path / "runs" / "e" / "a", tmp_path / "other" / "b"
    jobs = [replace(entry(path.name), run=str(path)) for path in (inside, outside)]
    Ledger(place, opened(place)).enter(jobs)
    (tmp_path / "runs").rename(tmp_path / "moved")
    place = tmp_path / "moved" / "sweeps" / "s"
    found = Ledger(place, Claims(place)).entries()
    assert [str(tmp_path / "moved" / "e" / "a"), str(outside)] == [found[n].run for n in (1, 2)]
    assert found[1].run in {str(run.path) for run, _ in members(SweepDir(place))}


def test_a_torn_last_line_is_written_anew(tmp_path: Path) -> None:
    """A driver may die in the middle of a line."""
    Ledger(tmp_path, opened(tmp_path)).enter([entry("lr=1"), entry("lr=2")])
    file = tmp_path / "jobs.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert [1, 2] == [e.job for e in Ledger(tmp_path, opened(tmp_path)).enter([entry("lr=1"), entry("lr=2")])]
    assert 2 == len(Ledger(tmp_path, opened(tmp_path)).entries())


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """Who edited the file is told where."""
    Ledger(tmp_path, opened(tmp_path)).enter([entry("lr=1"), entry("lr=2")])
    file = tmp_path / "jobs.jsonl"
    file.write_text(file.read_text().replace('"job": 2', '"job": two'))
    with pytest.raises(RunError, match=r"jobs.jsonl, line 2 is damaged"):
        Ledger(tmp_path, opened(tmp_path)).entries()


class Slept(list[LedgerEntry]):
    """Jobs over which their driver stands still, until another takes its lock for that of a dead one."""

    def __init__(self, place: Path, *entries: LedgerEntry) -> None:
        super().__init__(entries)
        self._place, self._is_awake = place, False

    def __iter__(self) -> Iterator[LedgerEntry]:
        if not self._is_awake:
            self._is_awake = True
            (self._place / "claims" / "ledger").unlink()
            Ledger(self._place, opened(self._place)).enter([entry("lr=2"), entry("lr=3")])
        return super().__iter__()


def test_who_has_slept_over_a_ledger_writes_over_nobodys_jobs(tmp_path: Path) -> None:
    """It takes the numbers after theirs, and finds a job that they have entered as well."""
    numbered = Ledger(tmp_path, opened(tmp_path)).enter(Slept(tmp_path, entry("lr=1"), entry("lr=3")))
    assert [3, 2] == [e.job for e in numbered]
    entries = Ledger(tmp_path, opened(tmp_path)).entries()
    assert {1: ("lr=2",), 2: ("lr=3",), 3: ("lr=1",)} == {job: e.overrides for job, e in entries.items()}
