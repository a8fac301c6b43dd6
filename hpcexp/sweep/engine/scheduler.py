"""Which waiting job to start on the free devices: nothing idles for long, and no wide job waits for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcexp.hardware.machine import Machine
from hpcexp.plan import Plan


@dataclass(frozen=True)
class Demand:
    """What a job takes of this machine."""

    kind: str
    """`cuda`: GPUs; `cpu`: cores."""
    width: int


@dataclass(frozen=True)
class Running:
    """A job at work, and whether it overtook the one that now waits first in the queue."""

    demand: Demand
    has_overtaken: bool


def demand_of(plan: Plan) -> Demand:
    """GPUs, or a core for each thread of each rank."""
    topology = plan.topology
    if topology.accelerator == "cuda":
        return Demand("cuda", topology.ranks_per_node)
    return Demand("cpu", topology.ranks_per_node * topology.threads_per_rank)


def room_of(plan: Plan, machine: Machine) -> int:
    """How many of what the plan demands this machine has, counting a device once for each job that may share it."""
    share: int = plan.settings.hardware.share or 1
    return share * (machine.num_gpus if plan.topology.accelerator == "cuda" else machine.num_cores)


def next_to_start(waiting: Sequence[Demand], running: Sequence[Running], room: int) -> int | None:
    """Position of the job to start now among those that wait for the same kind of device; None: wait.

    The first in the queue starts as soon as it fits. Until then others may overtake it, but those that do never take
    more than what it will leave free, so that it starts once all that ran before it have ended.
    """
    if not waiting:
        return None
    free = room - sum(job.demand.width for job in running)
    first = min(waiting[0].width, room)
    if first <= free:
        return 0
    overtaking = sum(job.demand.width for job in running if job.has_overtaken)
    spare = min(free, room - first - overtaking)
    return next((i for i, demand in enumerate(waiting) if i and demand.width <= spare), None)


def one_by_one(plan: Plan, num_jobs: int) -> str:
    """A warning if jobs that could run side by side each take every GPU by default; else empty."""
    width = plan.topology.ranks_per_node
    if num_jobs < 2 or width < 2 or plan.topology.accelerator != "cuda" or plan.settings.hardware.devices != "auto":
        return ""
    return (
        f"every job takes all {width} GPUs, so one runs after the other (hardware.devices=auto).\n"
        f"Fix: hardware.devices=1 runs {width} at once."
    )


def threads_for_many(plan: Plan, machine: Machine, num_jobs: int) -> int:
    """CPU threads of each rank where `num_jobs` such jobs are to share the machine's cores."""
    topology = plan.topology
    if topology.accelerator != "cpu" or plan.settings.hardware.threads_per_rank:
        return topology.threads_per_rank
    return max(1, machine.num_cores // (topology.ranks_per_node * max(1, num_jobs)))
