"""The GPUs of this machine and what computes on them, by NVML where it can be had, and which of them to take."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BF16_CAPABILITY = (8, 0)
"""Compute capability from which a GPU has bfloat16 units (CUDA C++ Programming Guide, table of capabilities)."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU."""

    pid: int
    """As the machine counts, which a container may not."""
    used: int | None
    """Bytes of the GPU's memory."""


@dataclass(frozen=True)
class Gpu:
    """One device as it is now; None where nothing tells."""

    index: int
    """As nvidia-smi counts, by PCI address; of its GPU where it is a MIG instance."""
    uuid: str = ""
    """`GPU-…` or `MIG-…`; empty where nothing tells."""
    name: str = ""
    free: int | None = None
    """Bytes."""
    total: int | None = None
    """Bytes."""
    utilisation: int | None = None
    """Percent of the time in which a kernel ran."""
    processes: tuple[GpuProcess, ...] = ()
    cores: frozenset[int] = frozenset()
    """Those of the same memory node; empty where nothing tells."""
    capability: tuple[int, int] | None = None
    watts: float | None = None
    """What it draws."""

    @property
    def lock_name(self) -> str:
        """What this device is leased as, by whatever number a command sees it."""
        return f"cuda-{self.uuid or self.index}".replace("/", "_")


@dataclass(frozen=True)
class Survey:
    """All GPUs of the machine, and the driver that reports them."""

    gpus: tuple[Gpu, ...]
    """MIG instances behind the GPU they are of."""
    driver: str = ""
    cuda: str = ""
    """The newest CUDA version that the driver can."""
    problem: str = ""
    """Why NVML tells nothing: without it nobody knows which GPU is busy."""


def survey() -> Survey:
    """The GPUs as they are now. Without NVML, only what the driver's files in /proc contain."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return Survey(driver_gpus(), problem="nvidia-ml-py is not installed: pip install 'hpcexp[gpu]'")
    try:
        nvml.nvmlInit()
        try:
            version = nvml.nvmlSystemGetCudaDriverVersion()
            cuda = f"{version // 1000}.{version % 1000 // 10}"
            return Survey(tuple(_nvml_gpus(nvml)), str(nvml.nvmlSystemGetDriverVersion()), cuda)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as e:
        return Survey(driver_gpus(), problem=f"NVML: {e}")


def _nvml_gpus(nvml: Any) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = _nvml_gpu(nvml, index, handle, handle)
        yield gpu
        if (_queried(nvml, "nvmlDeviceGetMigMode", handle) or [0])[0]:
            for number in range(_queried(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
                instance = _queried(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
                if instance is not None:
                    yield _nvml_gpu(nvml, index, instance, handle)


def _nvml_gpu(nvml: Any, index: int, handle: Any, whole: Any) -> Gpu:
    """What NVML says of a device; `whole` is the GPU that a MIG instance is of."""
    memory = _queried(nvml, "nvmlDeviceGetMemoryInfo", handle)
    rates = _queried(nvml, "nvmlDeviceGetUtilizationRates", handle)
    processes = _queried(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()
    words = _queried(nvml, "nvmlDeviceGetCpuAffinity", whole, 64) or ()
    milliwatts = _queried(nvml, "nvmlDeviceGetPowerUsage", whole)
    return Gpu(
        index,
        _queried(nvml, "nvmlDeviceGetUUID", handle) or "",
        _queried(nvml, "nvmlDeviceGetName", handle) or "",
        memory and memory.free,
        memory and memory.total,
        rates and rates.gpu,
        tuple(GpuProcess(p.pid, p.usedGpuMemory) for p in processes),
        frozenset(64 * n + bit for n, word in enumerate(words) for bit in range(64) if word >> bit & 1),
        _queried(nvml, "nvmlDeviceGetCudaComputeCapability", whole),
        None if milliwatts is None else milliwatts / 1000,
    )


def _queried(nvml: Any, function: str, *arguments: Any) -> Any:
    """NVML's answer; None where this device, driver or user does not get one."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def driver_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Names, UUIDs and near cores from the driver's and the kernel's files, by PCI address as NVML counts."""
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    return tuple(_driver_gpu(index, file, root) for index, file in enumerate(files))


def _driver_gpu(index: int, file: Path, root: Path) -> Gpu:
    facts = dict(re.findall(r"^([^:\n]+):[ \t]*(.*?)[ \t]*$", file.read_text(), flags=re.MULTILINE))
    near = root / "sys/bus/pci/devices" / file.parent.name.lower() / "local_cpulist"
    cores = parse_cpulist(near.read_text()) if near.exists() else frozenset()
    return Gpu(index, facts.get("GPU UUID", ""), facts.get("Model", ""), cores=cores)


def parse_cpulist(text: str) -> frozenset[int]:
    """The kernel's list of cores: `0-3,8` is 0, 1, 2, 3 and 8."""
    spans = [part.partition("-") for part in text.strip().split(",") if part]
    return frozenset(core for first, _, last in spans for core in range(int(first), int(last or first) + 1))


def visible_gpus(gpus: Sequence[Gpu], visible: str | None, number: int) -> tuple[Gpu, ...]:
    """The first `number` of those that CUDA_VISIBLE_DEVICES lets through, in its order; one that is unknown by name."""
    whole = [g for g in gpus if not g.uuid.startswith("MIG-")]
    named = [v.strip() for v in (visible or "").split(",") if v.strip()]
    names = [str(n) for n in range(number)] if visible is None else named
    return tuple(_named(name, gpus, whole) for name in names[:number])


def _named(name: str, gpus: Sequence[Gpu], whole: Sequence[Gpu]) -> Gpu:
    if name.isdigit():
        return next((g for g in whole if g.index == int(name)), Gpu(int(name)))
    # CUDA takes the beginning of a UUID for the whole.
    return next((g for g in gpus if g.uuid.startswith(name)), Gpu(0, name))


def by_load(gpus: Sequence[Gpu], leases: Sequence[int] | None = None) -> list[int]:
    """Positions in `gpus`, the least busy first; `leases` says how many jobs have each."""

    def load(position: int) -> tuple[int, bool, int, int, int]:
        gpu = gpus[position]
        jobs = leases[position] if leases else 0
        return jobs, bool(gpu.processes), -(gpu.free or 0), gpu.utilisation or 0, position

    return sorted(range(len(gpus)), key=load)


def can_compute(gpu: Gpu, precision: str) -> bool:
    """Whether the device can do what `trainer.precision` asks, as far as is known."""
    return not precision.startswith("bf16") or gpu.capability is None or gpu.capability >= BF16_CAPABILITY


def gpu_text(position: int, gpu: Gpu) -> str:
    """`GPU 0 (NVIDIA H100)`, numbered as `hardware.devices` does."""
    return f"GPU {position}" + (f" ({gpu.name})" if gpu.name else "")


def processes_text(gpu: Gpu) -> str:
    """`process 17 (1.5 GB), process 18`."""
    return ", ".join(
        f"process {p.pid}" + (f" ({p.used / 2**30:.1f} GB)" if p.used is not None else "") for p in gpu.processes
    )
