"""Which waiting job starts: devices do not idle for long, and no wide job waits for ever."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from training_plans import digits_plan

from hpcexp.sweep.engine.scheduler import Demand, Running, next_to_start, one_by_one


def demands(*widths: int) -> list[Demand]:
    return [Demand("cuda", width) for width in widths]


def running(*jobs: tuple[int, bool]) -> list[Running]:
    return [Running(Demand("cuda", width), has_overtaken) for width, has_overtaken in jobs]


@pytest.mark.parametrize(
    ("waiting", "at_work", "room", "expected"),
    [
        ((), (), 4, None),
        ((1, 1), (), 4, 0),
        ((4, 1), ((1, False),), 4, None),  # what it needs must get free, so nobody takes it
        ((3, 1), ((3, False),), 4, 1),  # the one device that the first will leave free
        ((3, 1), ((3, False), (1, True)), 4, None),
        ((3, 2, 1), ((3, False),), 4, 2),
        ((2, 1), ((1, False),), 2, None),
        ((8,), (), 4, 0),  # wider than the machine: whoever starts it says so
    ],
)
def test_the_first_in_the_row_is_not_overtaken_for_ever(
    waiting: tuple[int, ...], at_work: tuple[tuple[int, bool], ...], room: int, expected: int | None
) -> None:
    """Others go first only on devices that it will not need."""
    assert expected == next_to_start(demands(*waiting), running(*at_work), room)


def test_every_job_of_a_mixed_sweep_gets_its_turn() -> None:
    """Simulated: jobs of all widths and random lengths; none waits longer than those before it in the row run."""
    chance, room = random.Random(1), 4
    lengths = [(chance.choice([1, 1, 1, 2, 4]), chance.randint(1, 9)) for _ in range(300)]
    waiting, at_work, started_at, busy = list(range(300)), {}, {}, 0
    now = 0
    while waiting or at_work:
        at_work = {job: state for job, state in at_work.items() if state[0] > now}
        while True:
            jobs = [Running(Demand("cuda", lengths[job][0]), overtook) for job, (_, overtook) in at_work.items()]
            found = next_to_start(demands(*(lengths[job][0] for job in waiting)), jobs, room)
            if found is None:
                break
            job = waiting.pop(found)
            if found == 0:
                at_work = {j: (end, False) for j, (end, _) in at_work.items()}
            at_work[job] = (now + lengths[job][1], found > 0)
            started_at[job] = now
        used = sum(lengths[job][0] for job in at_work)
        assert used <= room
        busy += used
        now += 1
    assert 300 == len(started_at)
    assert (
        max(started_at[job] - max([started_at[other] for other in range(job)], default=0) for job in range(300)) <= 18
    )
    assert busy / (now * room) > 0.75


@pytest.mark.parametrize(
    ("accelerator", "devices", "num_jobs", "is_said"),
    [("cuda", "auto", 3, True), ("cuda", "all", 3, False), ("cuda", "auto", 1, False), ("cpu", "auto", 3, False)],
)
def test_jobs_that_each_take_every_gpu_are_warned_of(
    tmp_path: Path, accelerator: str, devices: str, num_jobs: int, is_said: bool
) -> None:
    """What suits one training is what a sweep of small ones suffers from; who says `all` means it."""
    plan = digits_plan(tmp_path, world_size=2)
    config = {**plan.config, "hardware": {"devices": devices}}
    plan = replace(plan, config=config, topology=replace(plan.topology, accelerator=accelerator))
    assert is_said is ("hardware.devices=1 runs 2 at once" in one_by_one(plan, num_jobs))
