"""What of this machine one job gets while it runs: GPUs that no other job is on, and cores for its ranks.

Which GPUs a count takes is decided here, when the job starts; the plan shows what it would be at planning time.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hpcexp.errors import RunError
from hpcexp.hardware.cpus import cores_text, job_cores, rank_cores, read_nodes
from hpcexp.hardware.device_locks import DeviceLocks, LockHolder, device_locks, has_room, locks_dir
from hpcexp.hardware.gpus import Gpu, by_load, can_compute, gpu_text, processes_text
from hpcexp.hardware.machine import cores, gpus_now
from hpcexp.plan import Plan
from hpcexp.rank_protocol import RankEnv
from hpcexp.schema.keys import Hardware

SETTLE_S = 3.0
"""How long a GPU may still show a process that has just ended, before it counts as busy."""

Look = Callable[[], tuple[Gpu, ...]]
Holders = Mapping[str, Sequence[LockHolder]]
"""Device → the jobs on it."""


@dataclass(frozen=True)
class DeviceLease:
    """What a job has got."""

    device_ids: tuple[int, ...]
    """For `Topology.device_ids`: GPUs counted among the visible ones; 0, 1, … on the CPU."""
    cores: tuple[frozenset[int], ...] | None
    """Cores of each rank of this machine; None where they may use all that this process may use."""
    warnings: tuple[str, ...] = ()
    """Printed before the job starts."""

    def environment(self) -> dict[str, str]:
        """What the ranks of this machine find in their environment.

        Devices are counted by PCI address, as they were chosen; the cores of each rank by its LOCAL_RANK: `0-3;4-7`
        for two, empty for any.
        """
        shares = ";".join(map(cores_text, self.cores or ()))
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **RankEnv(cores=shares).to_environ()}


@dataclass(frozen=True)
class DeviceRequest:
    """What a job asks of the machine."""

    plan: Plan
    look: Look
    is_one_of_many: bool = False

    @property
    def hardware(self) -> Hardware:
        return self.plan.settings.hardware

    @property
    def on_gpus(self) -> bool:
        return self.plan.topology.accelerator == "cuda"

    @property
    def share(self) -> int:
        return self.hardware.share or 1

    @property
    def is_strict(self) -> bool:
        """Whether each rank keeps to cores of its own."""
        return self.hardware.share is not None

    @property
    def needs_cores(self) -> bool:
        """Whether it is refused rather than run without cores of its own."""
        return not self.on_gpus and self.is_strict

    def holder(self) -> LockHolder:
        """How this job signs its locks."""
        user = str(self.plan.lineage.get("user", "unknown"))
        return LockHolder(os.getpid(), socket.gethostname(), user, self.plan.run_dir, self.share)


@dataclass(frozen=True)
class DeviceConflict:
    """Why a GPU cannot be taken."""

    text: str
    is_foreign: bool = False
    """Processes are on it that nobody has leased it for."""


class DevicesBusyError(RunError):
    """Others are on the devices of a job that can wait for them."""


@contextmanager
def leased(plan: Plan, look: Look = gpus_now, *, is_one_of_many: bool = False) -> Iterator[DeviceLease]:
    """Hold the devices of a job while it runs; RunError names who is on them where they are taken.

    A job that is one of many gets DevicesBusyError at once, also if only its cores are taken.
    """
    request = DeviceRequest(plan, look, is_one_of_many)
    with ExitStack() as held:
        try:
            got = _lease(request, held)
        except OSError as e:
            if request.on_gpus or request.needs_cores:
                raise RunError(
                    f"Devices cannot be leased in {locks_dir()}: {e.strerror}.\nIt keeps two jobs off one device.\n"
                    "Fix: HPCEXP_DEVICE_LOCKS=DIRECTORY in the environment, on this machine, writable by all users."
                ) from e
            why = f"Cores cannot be leased in {locks_dir()} ({e.strerror}): the job uses any core."
            got = DeviceLease(plan.topology.device_ids, None, (why,))
        yield got


def would_lease(plan: Plan, look: Look = gpus_now) -> str:
    """What the job would get now, for people; nothing is taken."""
    request = DeviceRequest(plan, look)
    try:
        with device_locks(locks_dir(), create=False) as shared:
            holders = shared.holders() if shared else {}
    except OSError as e:
        return f"unknown: {locks_dir()}: {e.strerror}"
    if request.on_gpus:
        gpus = look()
        chosen, blocked = choose_gpus(request, gpus, holders)
        if blocked:
            return "\n".join(["not enough GPUs are free", *(conflict.text for conflict in blocked)])
        return ", ".join(gpu_text(p, gpus[p]) for p in chosen)
    shares = choose_cores(request, (), holders)
    if shares is not None:
        return f"cores {cores_text(frozenset().union(*shares))}"
    return _crowd(holders) or "not known on this system"


def leases_text() -> str:
    """All jobs of this machine that hold device locks, and which, a line each."""
    try:
        with device_locks(locks_dir(), create=False) as shared:
            holders = shared.holders() if shared else {}
    except OSError as e:
        return f"{locks_dir()}: {e.strerror}"
    jobs: dict[LockHolder, list[str]] = {}
    for device, on in holders.items():
        for holder in on:
            jobs.setdefault(holder, []).append(device)
    return "\n".join(f"{job}: {_devices_text(devices)}" for job, devices in jobs.items()) or "none"


def _devices_text(devices: Sequence[str]) -> str:
    own = frozenset(int(d.removeprefix("core-")) for d in devices if d.startswith("core-"))
    gpus = [d.removeprefix("cuda-") for d in devices if d.startswith("cuda-")]
    named = [f"GPU {gpu}" if gpu.isdigit() else gpu for gpu in gpus]
    return ", ".join([*named, *([f"cores {cores_text(own)}"] if own else [])])


def _lease(request: DeviceRequest, held: ExitStack) -> DeviceLease:
    """Take what the job needs; files that hold it are closed by `held`."""
    topology, deadline = request.plan.topology, time.monotonic() + SETTLE_S
    while True:
        gpus = request.look() if request.on_gpus else ()
        with device_locks(locks_dir()) as shared:
            assert shared is not None
            holders = shared.holders()
            chosen, blocked = choose_gpus(request, gpus, holders) if request.on_gpus else (topology.device_ids, [])
            if not blocked:
                on = [gpus[p] for p in chosen] if request.on_gpus else []
                return _take(request, chosen, on, shared, holders, held)
        if request.is_one_of_many:
            raise DevicesBusyError(_taken_text(request, blocked))
        if not _is_foreign(blocked) or time.monotonic() > deadline:
            raise RunError(_taken_text(request, blocked))
        time.sleep(0.2)


def _take(
    request: DeviceRequest,
    chosen: tuple[int, ...],
    on: Sequence[Gpu],
    shared: DeviceLocks,
    holders: Holders,
    held: ExitStack,
) -> DeviceLease:
    shares = choose_cores(request, [gpu.cores for gpu in on], holders)
    if shares is None and request.is_one_of_many and not request.on_gpus and (crowd := _crowd(holders)):
        raise DevicesBusyError(crowd)
    if shares is None and request.needs_cores:
        raise RunError(
            f"hardware.share={request.share}: too few cores have room for this job. {_crowd(holders)}.\n"
            "Fix: wait, hardware.threads_per_rank or hardware.devices with less, or hardware.share=null to run without "
            "cores of its own."
        )
    owned: frozenset[int] = frozenset().union(*shares or ())
    for name in [*(gpu.lock_name for gpu in on), *(f"core-{core}" for core in sorted(owned))]:
        held.callback(os.close, shared.take(name, request.holder()))
    if shares is not None:
        return DeviceLease(chosen, shares if request.is_strict else job_cores(shares, read_nodes(owned)))
    if request.on_gpus:
        return DeviceLease(chosen, _near(on))
    crowd = _crowd(holders)
    return DeviceLease(chosen, None, (f"{crowd}: the jobs slow each other down.",) if crowd else ())


def choose_gpus(
    request: DeviceRequest, gpus: Sequence[Gpu], holders: Holders
) -> tuple[tuple[int, ...], list[DeviceConflict]]:
    """The GPUs to take, or what keeps the job off them, or off too many of all."""
    on = [holders.get(gpu.lock_name, ()) for gpu in gpus]
    why = [_conflict(request, position, gpu, on[position]) for position, gpu in enumerate(gpus)]
    if not isinstance(request.hardware.devices, int):
        ids = request.plan.topology.device_ids
        met = [
            why[p] if p < len(gpus) else DeviceConflict(f"GPU {p} is not there (CUDA_VISIBLE_DEVICES counts)")
            for p in ids
        ]
        return ids, [conflict for conflict in met if conflict]
    number = request.plan.topology.ranks_per_node
    free = [p for p in by_load(gpus, list(map(len, on))) if not why[p]]
    if len(free) >= number:
        return tuple(sorted(free[:number])), []
    return (), [conflict for conflict in why if conflict] or [
        DeviceConflict("no GPU is there (CUDA_VISIBLE_DEVICES counts)")
    ]


def _conflict(request: DeviceRequest, position: int, gpu: Gpu, jobs: Sequence[LockHolder]) -> DeviceConflict | None:
    """None where the GPU can be taken."""
    precision, named = request.plan.settings.trainer.precision, gpu_text(position, gpu)
    if not has_room(jobs, request.share):
        return DeviceConflict(f"{named} is taken by {', '.join(map(str, jobs))}")
    if gpu.processes and not jobs and not request.hardware.force:
        return DeviceConflict(f"{named} is used by {processes_text(gpu)}", is_foreign=True)
    if not can_compute(gpu, precision):
        return DeviceConflict(f"{named} cannot do trainer.precision={precision}")
    return None


def _taken_text(request: DeviceRequest, blocked: Sequence[DeviceConflict]) -> str:
    devices = request.hardware.devices
    shown = "[" + ",".join(map(str, devices)) + "]" if isinstance(devices, list) else devices
    reasons = "\n".join(f"{conflict.text}." for conflict in blocked)
    force = "; hardware.force=true takes them from those that are not hpcexp's" if _is_foreign(blocked) else ""
    return (
        f"hardware.devices={shown}: not enough GPUs are free.\n{reasons}\n"
        "A GPU is one job's, unless hardware.share of every job on it says that it bears more.\n"
        f"Fix: wait, hardware.devices=… with other or fewer GPUs, or hardware.share={request.share + 1}{force}."
    )


def _is_foreign(blocked: Sequence[DeviceConflict]) -> bool:
    return any(conflict.is_foreign for conflict in blocked)


def choose_cores(
    request: DeviceRequest, near: Sequence[frozenset[int]], holders: Holders
) -> tuple[frozenset[int], ...] | None:
    """Cores for the threads and data workers of each rank; None where too few have room."""
    allowed = cores()
    if allowed is None:
        return None
    topology = request.plan.topology
    ranks = topology.ranks_per_node
    each = min(max(1, len(allowed) // ranks), topology.threads_per_rank + request.plan.settings.data.num_workers)
    free = frozenset(core for core in allowed if has_room(holders.get(f"core-{core}", ()), request.share))
    if len(free) < min(len(allowed), each * ranks):
        return None
    return rank_cores(free, ranks, each, read_nodes(allowed), near or None)


def _near(gpus: Sequence[Gpu]) -> tuple[frozenset[int], ...] | None:
    """The cores on the memory node of each GPU, whoever else is on them; None where that is not known."""
    allowed = cores() or frozenset()
    shares = tuple(gpu.cores & allowed for gpu in gpus)
    return shares if all(shares) else None


def _crowd(holders: Holders) -> str:
    """Who has which cores: `cores 0-3 are taken by …`; empty where nobody has any."""
    allowed = cores() or frozenset()
    jobs: dict[LockHolder, set[int]] = {}
    for core in allowed:
        for holder in holders.get(f"core-{core}", ()):
            jobs.setdefault(holder, set()).add(core)
    return ", ".join(f"cores {cores_text(frozenset(own))} are taken by {job}" for job, own in jobs.items())
