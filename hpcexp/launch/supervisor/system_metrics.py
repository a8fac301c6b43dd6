"""What a job takes of its machine, sampled by its supervisor into `system.jsonl`: no rank waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.hardware.gpus import survey
from hpcexp.plan import Topology
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal, read_points

if TYPE_CHECKING:
    import psutil

_FIRST_S = 1.0
"""When counting begins: most jobs of a sweep are over before, and pay nothing."""
_MB = 1e6


class SystemMetrics:
    """Samples of one job, one in `every_s` seconds. Their names are those of MLflow, which shows them apart."""

    def __init__(self, run: RunDir, topology: Topology, every_s: float | None) -> None:
        self._run, self._topology, self._every_s = run, topology, every_s
        self._next = time.monotonic() + min(_FIRST_S, every_s or 0.0)
        self._before: dict[str, float] = {}
        """Counters when they were read last."""
        self._journal: Journal | None = None
        self._step = 0

    def look(self, pids: Collection[int]) -> None:
        """Take a sample where one is due; `pids`: the job's ranks on this machine."""
        if self._every_s is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every_s
        before, self._before = self._before, _counters(pids)
        if not before:
            return
        sample = {**_rates(before, self._before), **_levels(pids)}
        if self._topology.accelerator == "cuda":
            sample |= _gpus(self._topology.device_ids)
        self._append({f"system/{name}": round(value, 3) for name, value in sample.items()})

    def close(self) -> None:
        """Have all samples on the disk."""
        if self._journal is not None:
            self._journal.close()

    def _append(self, sample: dict[str, float]) -> None:
        if self._journal is None:
            points, _ = read_points(self._run.system)
            self._step = points[-1].step + 1 if points else 0
            self._journal = Journal(self._run.system)
        self._journal.append([(self._step, sample)])
        self._step += 1


def _counters(pids: Collection[int]) -> dict[str, float]:
    """What only ever grows: seconds of CPU time, bytes and joules."""
    import psutil

    cpu, network = psutil.cpu_times(), psutil.net_io_counters()
    found = {
        "time": time.monotonic(),
        "cpu": sum(cpu[:8]) - cpu.idle - getattr(cpu, "iowait", 0.0),  # these include the rest
        "job": 0.0,
        "receive": float(network.bytes_recv),
        "transmit": float(network.bytes_sent),
    }
    for process in _processes(pids):
        with suppress(psutil.Error):
            times = process.cpu_times()
            found["job"] += times.user + times.system + times.children_user + times.children_system
    with suppress(OSError, ValueError):
        found["joules"] = sum(int(f.read_text()) for f in Path("/sys/class/powercap").glob("*-rapl:?/energy_uj")) / 1e6
    return found


def _rates(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Growth per second since `before`; a counter that has restarted is left out."""
    seconds = now["time"] - before["time"]
    rate = {name: (now[name] - before[name]) / seconds for name in now.keys() & before.keys()}
    rates = {
        "cpu_utilization_percentage": min(100.0, 100 * rate["cpu"] / (os.cpu_count() or 1)),  # counted in ticks
        "job_cpu_percentage": 100 * rate["job"],
        "network_receive_megabytes_per_second": rate["receive"] / _MB,
        "network_transmit_megabytes_per_second": rate["transmit"] / _MB,
        "cpu_power_watts": rate.get("joules") or -1.0,  # 0: this machine does not report it
    }
    return {name: value for name, value in rates.items() if value >= 0}


def _levels(pids: Collection[int]) -> dict[str, float]:
    """What goes up and down. Pages that ranks share are counted once for each."""
    import psutil

    memory, resident = psutil.virtual_memory(), 0
    for process in _processes(pids):
        with suppress(psutil.Error):
            resident += process.memory_info().rss
    return {
        "job_memory_megabytes": resident / _MB,
        "system_memory_usage_megabytes": memory.used / _MB,
        "system_memory_usage_percentage": memory.percent,
    }


def _gpus(indices: Collection[int]) -> dict[str, float]:
    """Of the job's GPUs, what NVML tells."""
    found: dict[str, float | None] = {}
    for gpu in (gpu for gpu in survey().gpus if gpu.index in indices):
        used = None if gpu.total is None or gpu.free is None else gpu.total - gpu.free
        found[f"gpu_{gpu.index}_utilization_percentage"] = gpu.utilisation
        found[f"gpu_{gpu.index}_memory_usage_megabytes"] = None if used is None else used / _MB
        found[f"gpu_{gpu.index}_power_usage_watts"] = gpu.watts
    return {name: float(value) for name, value in found.items() if value is not None}


def _processes(pids: Collection[int]) -> Iterator[psutil.Process]:
    """The ranks and their data workers."""
    import psutil

    for pid in pids:
        with suppress(psutil.Error):
            rank = psutil.Process(pid)
            yield from (rank, *rank.children(recursive=True))
