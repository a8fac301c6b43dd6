"""Device locks of a machine: held by processes, freed by their end, shared by as many as all of them bear."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import environment

from hpcexp.compose.composer import Composed
from hpcexp.errors import RunError
from hpcexp.hardware import device_locks, leases
from hpcexp.hardware.gpus import Gpu, GpuProcess
from hpcexp.hardware.leases import DeviceLease, leased, leases_text, would_lease
from hpcexp.hardware.machine import Machine, cores, take_cores
from hpcexp.plan import Plan, save_plan
from hpcexp.planner import prepare
from hpcexp.rank_protocol import RankEnv

GB = 2**30
TWO = (
    Gpu(0, "GPU-a", "H100", free=70 * GB, total=80 * GB, utilisation=0, capability=(9, 0)),
    Gpu(1, "GPU-b", "H100", free=79 * GB, total=80 * GB, utilisation=0, capability=(9, 0)),
)
BUSY = Gpu(0, "GPU-a", "H100", processes=(GpuProcess(17, 3 * GB),))

HOLD = """
import sys
from pathlib import Path
from hpcexp.hardware.gpus import Gpu, GpuProcess
from hpcexp.hardware.leases import leased
from hpcexp.rank_protocol import RankEnv
from hpcexp.plan import load_plan

with leased(load_plan(Path(sys.argv[1])), look=lambda: eval(sys.argv[2])) as got:
    print(got, flush=True)
    sys.stdin.read()
"""

needs_affinity = pytest.mark.skipif(cores() is None, reason="this system tells no affinity")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Device locks of this test alone."""
    monkeypatch.setenv("HPCEXP_DEVICE_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def job(compose: Callable[..., Composed], project: Path) -> Callable[..., Plan]:
    """The plan of a job with these overrides on a machine of two GPUs."""
    return lambda *overrides: prepare(compose(*overrides), project, [], Machine("server", len(cores() or "1"), 2))


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A process that holds what a plan asks for; it has it, or has failed, when it is returned."""
    started: list[subprocess.Popen[str]] = []

    def hold(plan: Plan, gpus: tuple[Gpu, ...] = TWO, *, await_it: bool = True) -> subprocess.Popen[str]:
        path = tmp_path / f"plan-{len(started)}.yaml"
        save_plan(plan, path)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), repr(gpus)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if await_it:
            assert "DeviceLease" in first_line(process)
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def taken(plan: Plan, gpus: tuple[Gpu, ...] = TWO) -> DeviceLease:
    """What the plan gets, given back at once."""
    with leased(plan, look=lambda: gpus) as got:
        return got


def refusal(plan: Plan, gpus: tuple[Gpu, ...] = TWO) -> str:
    with pytest.raises(RunError) as refused:
        taken(plan, gpus)
    return str(refused.value)


def test_a_count_takes_the_next_free_gpu(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """The one with most free memory first; the process that has it is named where none is left."""
    one = job("hardware=gpu", "hardware.devices=1")
    assert (1,) == taken(one).device_ids
    first = holding(one)
    assert (0,) == taken(one).device_ids
    second = holding(one)
    said = refusal(one)
    assert "hardware.devices=1: not enough GPUs are free.\n" in said
    assert f"GPU 0 (H100) is taken by process {second.pid} of " in said
    assert f"GPU 1 (H100) is taken by process {first.pid} of " in said
    assert one.run_dir in said
    assert "hardware.share=2" in said


def test_commands_that_start_together_get_different_gpus(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """However their starts fall."""
    gpus = tuple(Gpu(n, f"GPU-{n}") for n in range(4))
    one = job("hardware=gpu", "hardware.devices=1")
    started = [holding(one, gpus, await_it=False) for _ in gpus]
    assert {f"({n},)" for n in range(4)} == {
        line.partition("device_ids=")[2].partition(", cores")[0] for line in map(first_line, started)
    }


def test_a_killed_process_leaves_no_lease(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """The next one has its device."""
    both = job("hardware=gpu", "hardware.devices=[0,1]")
    holder = holding(both)
    assert f"GPU 0 (H100) is taken by process {holder.pid} of " in refusal(both)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (0, 1) == taken(both).device_ids


def test_a_device_is_shared_by_as_many_as_all_of_them_bear(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """One that wants it alone is neither joined nor joins."""
    alone, shared = (job("hardware=gpu", "hardware.devices=[0]", *more) for more in ((), ("hardware.share=2",)))
    first = holding(shared)
    assert "is taken by" in refusal(alone)
    second = holding(shared)
    assert f"process {first.pid} of " in refusal(shared)
    assert f"process {second.pid} of " in refusal(shared)
    for process in (first, second):
        process.kill()
        process.wait()
    holding(alone)
    assert "is taken by" in refusal(shared)


def test_the_same_gpu_has_the_same_lock_whatever_its_number(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """Commands with other CUDA_VISIBLE_DEVICES count otherwise."""
    first = job("hardware=gpu", "hardware.devices=[0]")
    holding(first, TWO)
    assert "GPU 0 (H100) is taken by" in refusal(first, TWO[:1])
    assert (0,) == taken(first, TWO[::-1]).device_ids


def test_a_gpu_that_others_compute_on_is_refused_unless_forced(
    job: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again for a while: a process that has ended may still be shown."""
    monkeypatch.setattr(leases, "SETTLE_S", 0.0)
    one, forced = (job("hardware=gpu", "hardware.devices=1", *more) for more in ((), ("hardware.force=true",)))
    said = refusal(one, (BUSY,))
    assert "GPU 0 (H100) is used by process 17 (3.0 GB)." in said
    assert "hardware.force=true" in said
    assert (0,) == taken(forced, (BUSY,)).device_ids
    assert (1,) == taken(one, (BUSY, TWO[1])).device_ids
    monkeypatch.setattr(leases, "SETTLE_S", 60.0)
    seen = iter([(BUSY,), TWO[:1]])
    with leased(one, look=lambda: next(seen)) as got:
        assert (0,) == got.device_ids


def test_processes_of_a_job_that_shares_are_no_strangers(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """A GPU that is leased is expected to be computed on."""
    shared = job("hardware=gpu", "hardware.devices=[0]", "hardware.share=2")
    holding(shared)
    assert (0,) == taken(shared, (BUSY,)).device_ids


def test_a_gpu_that_has_gone_since_the_plan_is_named(job: Callable[..., Plan]) -> None:
    """Instead of an index that is out of range."""
    assert "GPU 1 is not there" in refusal(job("hardware=gpu", "hardware.devices=[1]"), TWO[:1])
    assert "no GPU is there" in refusal(job("hardware=gpu", "hardware.devices=1"), ())


@needs_affinity
def test_gpu_ranks_are_near_their_gpus(job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]) -> None:
    """With cores of their own, or else all of the GPU's memory node."""
    mine = cores()
    assert mine is not None
    near = (Gpu(0, "GPU-a", cores=mine), Gpu(1, "GPU-b", cores=mine))
    plan = job("hardware=gpu", "hardware.devices=[0]", f"hardware.threads_per_rank={len(mine)}")
    assert (mine,) == taken(plan, near).cores
    holding(plan, near)
    other = job("hardware=gpu", "hardware.devices=[1]", "hardware.threads_per_rank=1")
    assert (mine,) == taken(other, near).cores
    assert None is taken(other).cores


@needs_affinity
def test_cpu_jobs_get_cores_of_their_own_while_there_are_any(
    job: Callable[..., Plan], holding: Callable[..., subprocess.Popen[str]]
) -> None:
    """After that they run all the same, and are told who has them; `hardware.share=1` has them refused instead."""
    mine = cores()
    assert mine is not None
    everything = job("hardware=cpu")
    holder = holding(everything)
    crowded = taken(everything)
    assert None is crowded.cores
    assert f"are taken by process {holder.pid} of " in crowded.warnings[0]
    assert f"process {holder.pid} of " in would_lease(everything)
    strict = job("hardware=cpu", "hardware.share=1")
    assert "hardware.share=1: too few cores" in refusal(strict)
    assert f"process {holder.pid} of " in refusal(strict)
    holder.kill()
    holder.wait()
    assert ((mine,), ()) == (taken(strict).cores, taken(strict).warnings)


@needs_affinity
def test_ranks_get_their_share_of_cores(job: Callable[..., Plan]) -> None:
    """For threads and the processes that read samples; a number for `hardware.share` has each rank keep to its own."""
    mine = cores()
    assert mine is not None
    one = job("hardware=cpu", "hardware.threads_per_rank=1")
    assert [1] == [len(c) for c in taken(one).cores or ()]
    readers = job("hardware=cpu", "hardware.threads_per_rank=1", "data.loader=map", "data.num_workers=999")
    assert (mine,) == taken(readers).cores
    loose = taken(job("hardware=cpu", f"hardware.devices={len(mine)}", "data.global_batch_size=64")).cores
    assert mine == frozenset().union(*loose or ())
    crowd = job("hardware=cpu", f"hardware.devices={2 * len(mine)}", "hardware.share=2", "data.global_batch_size=64")
    shares = taken(crowd).cores
    assert shares is not None
    assert 2 * len(mine) == len(shares)
    assert {1} == set(map(len, shares))
    assert mine == frozenset().union(*shares)


def test_planning_takes_nothing(job: Callable[..., Plan], directory: Path) -> None:
    """Not even the directory is made."""
    assert "GPU 1 (H100)" == would_lease(job("hardware=gpu", "hardware.devices=1"), look=lambda: TWO)
    assert would_lease(job("hardware=cpu")).startswith("cores ")
    assert not directory.exists()


def test_all_users_may_use_the_directory(job: Callable[..., Plan], directory: Path) -> None:
    """Whatever this one's umask is; nobody may remove another's files."""
    before = os.umask(0o077)
    try:
        taken(job("hardware=gpu", "hardware.devices=1"))
    finally:
        os.umask(before)
    assert 0o1777 == stat.S_IMODE(directory.stat().st_mode)
    assert {0o666} == {stat.S_IMODE(f.stat().st_mode) for f in directory.iterdir()}


@pytest.mark.parametrize("trap", ["symlink", "hard link", "pipe", "directory"])
def test_what_others_have_put_in_place_of_a_lock_is_not_written_to(
    job: Callable[..., Plan], directory: Path, tmp_path: Path, trap: str
) -> None:
    """Everybody may make files there."""
    precious = tmp_path / "precious"
    precious.write_text("diary")
    directory.mkdir()
    place = directory / "cuda-GPU-b.0"
    traps: dict[str, Callable[[], object]] = {
        "symlink": lambda: place.symlink_to(precious),
        "hard link": lambda: place.hardlink_to(precious),
        "pipe": lambda: os.mkfifo(place),
        "directory": place.mkdir,
    }
    traps[trap]()
    assert "HPCEXP_DEVICE_LOCKS" in refusal(job("hardware=gpu", "hardware.devices=[1]"))
    assert "diary" == precious.read_text()


def test_a_directory_that_cannot_be_used_ends_gpu_jobs_only(job: Callable[..., Plan], directory: Path) -> None:
    """A CPU job has no device to lose; it says so and runs."""
    directory.symlink_to("/nowhere")
    assert f"Devices cannot be leased in {directory}" in refusal(job("hardware=gpu", "hardware.devices=1"))
    got = taken(job("hardware=cpu"))
    assert got.cores is None
    assert f"Cores cannot be leased in {directory}" in got.warnings[0]
    assert "Devices cannot be leased" in refusal(job("hardware=cpu", "hardware.share=1"))


def test_a_command_that_is_stuck_does_not_hold_up_others_for_ever(
    job: Callable[..., Plan], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is kept for milliseconds only."""
    monkeypatch.setattr(device_locks, "GATE_S", 0.05)
    with device_locks.device_locks(directory):
        assert "another command has kept it" in refusal(job("hardware=gpu", "hardware.devices=1"))


def test_a_lock_without_a_name_is_held_too(job: Callable[..., Plan], directory: Path) -> None:
    """As on a full disk; and what others write does not steer a terminal."""
    plan = job("hardware=gpu", "hardware.devices=[0]")
    with leased(plan, look=lambda: TWO):
        lock = directory / "cuda-GPU-a.0"
        text = lock.read_text()
        lock.write_text("")
        assert "GPU 0 (H100) is taken by a process that does not say more." in refusal(plan)
        lock.write_text(text.replace(plan.run_dir, r"\u001b[2J"))
        assert "\x1b" not in refusal(plan)


@needs_affinity
def test_a_rank_takes_the_cores_that_were_leased_for_it() -> None:
    """By its number on this machine; any where none were leased."""
    mine = sorted(cores() or ())
    before = set(mine)
    got = DeviceLease((0, 1), (frozenset(mine), frozenset(mine[-1:])))
    try:
        for rank, expected in ((0, mine), (1, mine[-1:])):
            take_cores(RankEnv.from_environ(got.environment()).cores, rank)
            assert expected == sorted(cores() or ())
            os.sched_setaffinity(0, before)
        take_cores(RankEnv.from_environ(DeviceLease((0,), None).environment()).cores, 0)
        assert mine == sorted(cores() or ())
    finally:
        os.sched_setaffinity(0, before)


def test_doctor_names_who_has_what(job: Callable[..., Plan]) -> None:
    """A line for each job."""
    assert "none" == leases_text()
    plan = job("hardware=gpu", "hardware.devices=[0,1]")
    with leased(plan, look=lambda: (TWO[0], Gpu(1))):
        assert leases_text().startswith(f"process {os.getpid()} of ")
        assert f"({plan.run_dir}): GPU 1, GPU-a" in leases_text()
    assert "none" == leases_text()
