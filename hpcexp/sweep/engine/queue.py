"""Jobs of a sweep that wait for devices, and which of them to start."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpcexp.hardware.machine import Machine
from hpcexp.sweep.engine.scheduler import Running, demand_of, next_to_start, room_of
from hpcexp.sweep.store.jobs import Job

LOOK_EVERY_S = 1.0
"""How often to try again what other programs kept from starting."""


@dataclass(frozen=True)
class _Busy:
    """A job found too few devices, although no job of this driver uses them."""

    width: int
    why: str
    until: float
    """When to try again, by the monotonic clock. Until then narrower jobs may start first."""


@dataclass
class JobQueue:
    """Waiting jobs, in the order in which they are to start."""

    machine: Machine
    _jobs: list[Job] = field(default_factory=list)
    _busy: dict[str, _Busy] = field(default_factory=dict)
    """By kind of device."""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def why(self) -> str:
        """What the next job waits for beside this driver's own jobs; empty if nothing."""
        return next((busy.why for busy in self._busy.values()), "")

    def append(self, job: Job) -> None:
        """Queue a new job."""
        self._jobs.append(job)

    def insert(self, job: Job) -> None:
        """Queue a job again, by its number."""
        bisect.insort(self._jobs, job, key=lambda other: other.entry.job)

    def pop(self, position: int) -> Job:
        """Take a job out."""
        return self._jobs.pop(position)

    def put_back(self, job: Job, why: str) -> None:
        """Queue a job again whose devices others use."""
        demand = demand_of(job.plan)
        self._busy[demand.kind] = _Busy(demand.width, why, time.monotonic() + LOOK_EVERY_S)
        self.insert(job)

    def started(self, job: Job) -> None:
        """Devices of the job's kind are free again: it has started."""
        self._busy.pop(demand_of(job.plan).kind, None)

    def has_free(self, newest: Job, running: Sequence[Running]) -> bool:
        """Whether there are devices of the kind of the `newest` job that no job of this driver uses."""
        kind = demand_of(newest.plan).kind
        return room_of(newest.plan, self.machine) > sum(one.demand.width for one in running if one.demand.kind == kind)

    def position(self, running: Sequence[Running]) -> int | None:
        """Index of the job to start now; None if none fits."""
        demands = [demand_of(job.plan) for job in self._jobs]
        for kind in dict.fromkeys(demand.kind for demand in demands):
            most = self._most(kind)
            row = [i for i, demand in enumerate(demands) if demand.kind == kind and demand.width <= most]
            if not row:
                continue
            room = room_of(self._jobs[row[0]].plan, self.machine)
            same = [one for one in running if one.demand.kind == kind]
            found = next_to_start([demands[i] for i in row], same, room)
            if found is not None:
                return row[found]
        return None

    def _most(self, kind: str) -> float:
        """The widest job that may fit."""
        busy = self._busy.get(kind)
        return busy.width - 1 if busy and time.monotonic() < busy.until else math.inf
