"""Which devices a job is planned on, and why not: on GPU servers that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcexp.checks.devices import topology
from hpcexp.cli.doctor import gpu_findings
from hpcexp.compose.composer import Composed
from hpcexp.hardware.gpus import Gpu, GpuProcess, Survey, by_load, driver_gpus, survey, visible_gpus
from hpcexp.hardware.machine import Machine, num_gpus
from hpcexp.plan import Topology
from hpcexp.planner import prepare

GB = 2**30
IDLE = Gpu(0, "GPU-a", "H100", free=70 * GB, total=80 * GB, utilisation=0, capability=(9, 0))
BUSY = replace(IDLE, processes=(GpuProcess(17, 3 * GB), GpuProcess(18, None)), utilisation=90)
OLD = Gpu(0, "GPU-o", "V100", free=30 * GB, total=32 * GB, utilisation=0, capability=(7, 0))
CPU = Machine("laptop", num_cores=2, num_gpus=0)

TORCH_DEVICES = """
import torch
for n in range(torch.cuda.device_count()):
    p = torch.cuda.get_device_properties(n)
    print(f"GPU-{p.uuid} {p.major}.{p.minor}")
"""


def server(*gpus: Gpu) -> Machine:
    return Machine("server", num_cores=16, num_gpus=len(gpus), look=lambda: gpus)


def asked(compose: Callable[..., Composed], machine: Machine, *overrides: str) -> tuple[Topology | None, list[str]]:
    return topology(compose(*overrides).settings, machine)


@pytest.mark.parametrize(
    ("gpus", "leases", "expected"),
    [
        ([IDLE, IDLE], None, [0, 1]),
        ([BUSY, IDLE], None, [1, 0]),
        ([BUSY, IDLE], [0, 1], [0, 1]),
        ([replace(IDLE, free=GB), IDLE, replace(IDLE, free=2 * GB)], None, [1, 2, 0]),
        ([replace(IDLE, utilisation=50), replace(IDLE, utilisation=10)], None, [1, 0]),
        ([Gpu(0), Gpu(1)], None, [0, 1]),
    ],
)
def test_the_least_busy_come_first(gpus: list[Gpu], leases: list[int] | None, expected: list[int]) -> None:
    """By leases, then processes, free memory, utilisation, number."""
    assert expected == by_load(gpus, leases)


def test_a_count_takes_the_least_busy(compose: Callable[..., Composed]) -> None:
    """In the order of their numbers; a list is taken as it is."""
    machine = server(BUSY, IDLE, replace(IDLE, free=75 * GB))
    found, problems = asked(compose, machine, "hardware.devices=1")
    assert ((2,), []) == (found and found.device_ids, problems)
    found, problems = asked(compose, machine, "hardware.devices=2")
    assert ((1, 2), []) == (found and found.device_ids, problems)
    found, problems = asked(compose, machine, "hardware.devices=[2,1]")
    assert ((2, 1), []) == (found and found.device_ids, problems)


def test_a_busy_gpu_is_refused_with_the_way_out(compose: Callable[..., Composed]) -> None:
    """Unless it is forced, or shared; then the job's start tells who is on it."""
    machine = server(BUSY, IDLE)
    found, problems = asked(compose, machine, "hardware.devices=2")
    assert None is found
    assert [
        "hardware.devices=2: other processes compute there, and would slow each other down.\n"
        "GPU 0 (H100): process 17 (3.0 GB), process 18\n"
        "Fix: hardware.devices=[1] takes what is free, hardware.force=true takes them all the same, "
        "hardware.share=2 where the other is hpcexp too and says so, or wait."
    ] == problems
    for word in ("all", "[0]", "auto"):
        assert "process 17" in asked(compose, machine, f"hardware.devices={word}")[1][0]
    for way in ("hardware.force=true", "hardware.share=2"):
        assert [] == asked(compose, machine, "hardware.devices=2", way)[1]


def test_bf16_takes_gpus_that_have_it(compose: Callable[..., Composed]) -> None:
    """And names those that have not."""
    bf16 = "trainer.precision=bf16-mixed"
    machine = server(OLD, IDLE)
    found, problems = asked(compose, machine, "hardware.devices=1", bf16)
    assert ((1,), []) == (found and found.device_ids, problems)
    for devices in ("2", "all", "[0]"):
        [problem] = asked(compose, machine, f"hardware.devices={devices}", bf16)[1]
        assert "GPU 0 (V100) cannot compute in bfloat16 (its compute capability is 7.0; 8.0 can)" in problem
        assert "trainer.precision=16-mixed" in problem
    assert [] == asked(compose, server(Gpu(0)), bf16)[1]


@pytest.mark.parametrize(
    ("machine", "overrides", "words"),
    [
        (CPU, ["hardware.devices=[0,0]"], ["[0,0] names a device twice", "hardware.devices=[0]"]),
        (CPU, ["hardware.devices=[5]"], ["laptop has 2 CPU cores", "valid are 0 to 1"]),
        (CPU, ["hardware.devices=-3"], ["hardware.devices=-3: a job needs at least one", "hardware.devices=1"]),
        (CPU, ["hardware.devices=0"], ["hardware.devices=0: a job needs at least one"]),
        (CPU, ["hardware.devices=abc"], ["hardware.devices=abc: not a number, a list of numbers, all or auto"]),
        (CPU, ["hardware.devices=[a]"], ["hardware.devices=[a]: not a list of device numbers"]),
        (CPU, ["hardware.devices=3"], ["laptop has 2 CPU cores", "hardware.devices=2"]),
        (CPU, ["hardware=gpu"], ["laptop has no GPU", "CUDA_VISIBLE_DEVICES counts", "hardware=cpu"]),
        (CPU, ["hardware.threads_per_rank=8"], ["on 1 rank,", "laptop has 2 CPU cores", "hardware.threads_per_rank=2"]),
        (CPU, ["hardware.devices=2", "hardware.threads_per_rank=2"], ["on 2 ranks", "hardware.threads_per_rank=1"]),
        (server(IDLE, IDLE), ["hardware.devices=[5]"], ["server has 2 GPUs", "valid are 0 to 1"]),
        (server(IDLE, IDLE), ["hardware.devices=[0,0]"], ["names a device twice"]),
        (server(IDLE, IDLE), ["hardware.devices=3"], ["server has 2 GPUs", "hardware.devices=2"]),
        (server(IDLE, IDLE), ["hardware.devices=-3"], ["a job needs at least one"]),
    ],
)
def test_what_cannot_be_is_said_at_plan_time(
    compose: Callable[..., Composed], machine: Machine, overrides: list[str], words: list[str]
) -> None:
    """What, why, and what to type instead."""
    found, [problem] = asked(compose, machine, *overrides)
    assert found is None
    assert [] == [w for w in [*words, "\nFix: "] if w not in problem], problem


def test_shared_cores_bear_more_ranks_and_threads_than_there_are(compose: Callable[..., Composed]) -> None:
    """As many times as `hardware.share` says."""
    found, problems = asked(compose, CPU, "hardware.devices=4", "hardware.share=2")
    assert (Topology("cpu", (0, 1, 2, 3), 1, 1, "ddp", "gloo"), []) == (found, problems)
    found, problems = asked(compose, CPU, "hardware.threads_per_rank=4", "hardware.share=2")
    assert (4, []) == (found and found.threads_per_rank, problems)
    assert "hardware.devices=4" in asked(compose, CPU, "hardware.devices=5", "hardware.share=2")[1][0]


def test_gpus_are_not_looked_at_for_the_cpu(compose: Callable[..., Composed]) -> None:
    """It would take as long as all the rest of planning."""

    def look() -> tuple[Gpu, ...]:
        pytest.fail("looked")

    assert [] == asked(compose, Machine("server", 16, 2, look), "hardware=cpu")[1]


def test_which_devices_they_are_is_no_part_of_a_runs_identity(compose: Callable[..., Composed], project: Path) -> None:
    """Their number is."""

    def signature(*overrides: str) -> str:
        plan = prepare(compose("hardware=gpu", *overrides), project, [], server(IDLE, IDLE, IDLE))
        return plan.signature

    two = signature("hardware.devices=2")
    assert two == signature("hardware.devices=[0,2]") == signature("hardware.devices=[2,1]", "hardware.force=true")
    assert two != signature("hardware.devices=1")


def test_what_holds_ranks_together_counts_where_it_changes_sums(
    compose: Callable[..., Composed], project: Path
) -> None:
    """Not on one device, where nothing is held together."""

    def signature(*overrides: str) -> str:
        return prepare(compose("hardware=cpu", *overrides), project, [], Machine("here", 4, 0)).signature

    assert signature() == signature("strategy=ddp") == signature("strategy=ddp", "strategy.compression=fp16")
    two = ("hardware.devices=2", "strategy=ddp")
    assert signature(*two) == signature(*two, "strategy.static_graph=true")
    assert signature(*two) != signature(*two, "strategy.compression=fp16")


MIG = Gpu(1, "MIG-c", "H100 MIG 1g.10gb")
FOUR = (Gpu(0, "GPU-aa"), Gpu(1, "GPU-ba"), MIG, Gpu(2, "GPU-bb"))


@pytest.mark.parametrize(
    ("visible", "number", "expected"),
    [
        (None, 3, ["GPU-aa", "GPU-ba", "GPU-bb"]),
        ("2,0", 2, ["GPU-bb", "GPU-aa"]),
        ("GPU-bb, GPU-aa", 2, ["GPU-bb", "GPU-aa"]),
        ("GPU-a", 1, ["GPU-aa"]),
        ("1,-1,2", 1, ["GPU-ba"]),
        ("MIG-c", 1, ["MIG-c"]),
        ("MIG-GPU-x/1/0", 1, ["MIG-GPU-x/1/0"]),
        ("7", 1, [""]),
        ("", 0, []),
    ],
)
def test_cuda_visible_devices_says_which_and_in_what_order(
    visible: str | None, number: int, expected: list[str]
) -> None:
    """By number, UUID or its beginning, or name of a MIG instance; what is not known keeps its name."""
    assert expected == [gpu.uuid for gpu in visible_gpus(FOUR, visible, number)]


def test_device_locks_are_named_by_what_does_not_depend_on_the_command() -> None:
    """As file names."""
    assert ["cuda-GPU-aa", "cuda-3", "cuda-MIG-GPU-x_1_0"] == [
        gpu.lock_name for gpu in (Gpu(0, "GPU-aa"), Gpu(3), Gpu(0, "MIG-GPU-x/1/0"))
    ]


def test_the_drivers_own_files_name_the_gpus(tmp_path: Path) -> None:
    """Where there is no NVML: in the order of their PCI addresses, with the cores near them."""
    for address, uuid, near in (("0000:65:00.0", "GPU-b", "8-15"), ("0000:0a:00.0", "GPU-a", "0-1,4")):
        file = tmp_path / "proc/driver/nvidia/gpus" / address / "information"
        file.parent.mkdir(parents=True)
        file.write_text(
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 150\nGPU UUID: \t {uuid}\n"
            f"Bus Type: \t PCIe\nBus Location: \t {address}\nDevice Minor: \t 3\n"
        )
        cpus = tmp_path / "sys/bus/pci/devices" / address / "local_cpulist"
        cpus.parent.mkdir(parents=True)
        cpus.write_text(f"{near}\n")
    name = "NVIDIA H100 80GB HBM3"
    assert (
        Gpu(0, "GPU-a", name, cores=frozenset({0, 1, 4})),
        Gpu(1, "GPU-b", name, cores=frozenset(range(8, 16))),
    ) == driver_gpus(tmp_path)


def test_a_machine_without_a_driver_has_no_gpus_and_says_why() -> None:
    """NVML's own words, or that its Python part is not installed; with a driver it tells all."""
    found = survey()
    assert bool(found.problem) != bool(found.driver)
    if found.problem:
        assert driver_gpus() == found.gpus


def test_nvml_tells_what_the_devices_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In NVML's own structures; what a device does not tell stays open, and a MIG instance is of its GPU."""
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    capability, used = (9, 0), nvml.c_nvmlMemory_t(total=80 * GB, free=70 * GB, used=10 * GB)
    answers: dict[str, Callable[..., object]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
        "nvmlSystemGetCudaDriverVersion": lambda: 12080,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: "gpu",
        "nvmlDeviceGetMigMode": lambda handle: [1, 1],
        "nvmlDeviceGetMaxMigDeviceCount": lambda handle: 2,
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda handle, n: (
            ["mig"][n] if n < 1 else told(nvml.NVML_ERROR_NOT_FOUND)
        ),
        "nvmlDeviceGetUUID": lambda handle: {"gpu": "GPU-a", "mig": "MIG-c"}[handle],
        "nvmlDeviceGetName": lambda handle: "H100",
        "nvmlDeviceGetMemoryInfo": lambda handle: used if handle == "gpu" else told(nvml.NVML_ERROR_NO_PERMISSION),
        "nvmlDeviceGetUtilizationRates": lambda handle: told(nvml.NVML_ERROR_NOT_SUPPORTED),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [nvml.c_nvmlProcessInfo_v3_t(pid=17, usedGpuMemory=GB)],
        "nvmlDeviceGetCpuAffinity": lambda handle, size: (nvml.c_ulonglong * size)(0b101, 1),
        "nvmlDeviceGetCudaComputeCapability": lambda handle: capability,
    }

    def told(error: int) -> object:
        raise nvml.NVMLError(error)

    for name, answer in answers.items():
        monkeypatch.setattr(nvml, name, answer)
    busy, near = (GpuProcess(17, GB),), frozenset({0, 2, 64})
    whole = Gpu(0, "GPU-a", "H100", 70 * GB, 80 * GB, None, busy, near, capability)
    part = Gpu(0, "MIG-c", "H100", processes=busy, cores=near, capability=capability)
    assert Survey((whole, part), "570.1", "12.8") == survey()
    monkeypatch.setattr(nvml, "nvmlInit", lambda: told(nvml.NVML_ERROR_DRIVER_NOT_LOADED))
    assert Survey(driver_gpus(), problem="NVML: Driver Not Loaded") == survey()


@pytest.mark.gpu
@pytest.mark.skipif(not num_gpus(None), reason="no NVIDIA device")
def test_nvml_and_torch_tell_the_same() -> None:
    """Of the real devices, counted by PCI address."""
    seen = subprocess.run(
        [sys.executable, "-c", TORCH_DEVICES],
        env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = survey()
    assert "" == found.problem
    told = [f"{gpu.uuid} {'.'.join(map(str, gpu.capability or ()))}" for gpu in found.gpus]
    assert told == seen.stdout.splitlines()
    assert all(gpu.total and gpu.cores and gpu.name for gpu in found.gpus)
    assert [gpu.uuid for gpu in driver_gpus()] == [gpu.uuid for gpu in found.gpus]


def test_doctor_tells_of_each_gpu() -> None:
    """Memory, utilisation, processes, driver; and what it means where NVML is missing."""
    told = {what: text for what, _, text in gpu_findings(Survey((BUSY, MIG), "570.1", "12.8"))}
    assert told["GPU driver"] == "570.1, for CUDA up to 12.8"
    assert told["GPU 0"] == "H100, 10.0 of 80.0 GB used, 90 % busy; process 17 (3.0 GB), process 18"
    assert told["GPU 1 MIG-c"] == "H100 MIG 1g.10gb; no process reported"
    told = {what: text for what, _, text in gpu_findings(Survey((Gpu(0),), problem="NVML: no"))}
    assert "NVML: no" in told["GPU driver"]
    assert "GPU 0" in told
