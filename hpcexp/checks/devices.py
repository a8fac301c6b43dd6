"""From `hardware` and `strategy` to ranks on devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcexp.checks.strategies import strategy_problems
from hpcexp.hardware.gpus import BF16_CAPABILITY, Gpu, by_load, can_compute, gpu_text, processes_text
from hpcexp.hardware.machine import Machine
from hpcexp.plan import Topology
from hpcexp.schema.keys import Hardware
from hpcexp.schema.settings import Settings


def topology(settings: Settings, machine: Machine) -> tuple[Topology | None, list[str]]:
    """Which device each rank gets, or why that cannot be. Of GPUs a count takes those that are least busy now."""
    hardware, precision = settings.hardware, settings.trainer.precision
    accelerator, problems = _accelerator(hardware.accelerator, machine)
    if problems:
        return None, problems
    if accelerator == "cuda":
        ids, problems = _gpu_ids(hardware, precision, machine)
    else:
        ids, problems = _cpu_ids(hardware, machine)
        problems += _precision_problems(precision)
    num_ranks = len(ids) * hardware.num_nodes
    strategy, more = _strategy(settings.strategy.name, num_ranks)
    problems += [*more, *strategy_problems(settings, strategy, accelerator)]
    problems += _thread_problems(hardware, len(ids), machine)
    if problems:
        return None, problems
    # A job on some of the GPUs leaves the others' jobs their cores.
    shares = max(len(ids), machine.num_gpus if accelerator == "cuda" else 1)
    threads = hardware.threads_per_rank or max(1, machine.num_cores // shares)
    backend = None if num_ranks == 1 else "nccl" if accelerator == "cuda" else "gloo"
    return Topology(accelerator, ids, hardware.num_nodes, threads, strategy, backend), []


def _accelerator(wanted: str, machine: Machine) -> tuple[str, list[str]]:
    if wanted == "auto":
        return ("cuda" if machine.num_gpus else "cpu"), []
    if wanted == "cuda" and not machine.num_gpus:
        why = "no NVIDIA device is visible (CUDA_VISIBLE_DEVICES counts)."
        return wanted, [f"hardware.accelerator=cuda: {machine.host} has no GPU: {why}\nFix: hardware=cpu"]
    return wanted, []


def _cpu_ids(hardware: Hardware, machine: Machine) -> tuple[tuple[int, ...], list[str]]:
    wanted, available = hardware.devices, machine.num_cores * (hardware.share or 1)
    if wanted == "auto":
        return (0,), []
    if wanted == "all":
        return tuple(range(machine.num_cores)), []
    noun = "CPU cores, and a rank takes at least one"
    if problem := _problem(wanted, available, noun, machine.num_cores, machine.host):
        return (), [problem]
    return tuple(wanted if isinstance(wanted, list) else range(wanted)), []


def _gpu_ids(hardware: Hardware, precision: str, machine: Machine) -> tuple[tuple[int, ...], list[str]]:
    wanted, available = hardware.devices, machine.num_gpus
    gpus = machine.look() or tuple(map(Gpu, range(available)))
    if wanted in ("auto", "all"):
        chosen = list(range(available))
    elif problem := _problem(wanted, available, "GPUs", available, machine.host):
        return (), [problem]
    elif isinstance(wanted, list):
        chosen = wanted
    else:
        # Those that cannot do it come last, and are then named.
        order = sorted(by_load(gpus), key=lambda position: not can_compute(gpus[position], precision))
        chosen = sorted(order[:wanted])
    problems = [_unfit_text(p, gpus[p], precision) for p in chosen if not can_compute(gpus[p], precision)]
    if not hardware.force and (hardware.share or 1) == 1:
        problems += _busy_problems(hardware, chosen, gpus)
    return tuple(chosen), problems


def _problem(wanted: Any, available: int, noun: str, number: int, host: str) -> str | None:
    """Why `wanted` is no count or list of devices out of `available`; the machine has `number` of what `noun` says."""
    if isinstance(wanted, list):
        return _list_problem(wanted, available, noun, number, host)
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        shown = "null" if wanted is None else wanted
        return f"hardware.devices={shown}: not a number, a list of numbers, all or auto.\nFix: hardware.devices=1"
    if wanted < 1:
        return f"hardware.devices={wanted}: a job needs at least one device.\nFix: hardware.devices=1"
    if wanted > available:
        return f"hardware.devices={wanted}, but {host} has {number} {noun}.\nFix: hardware.devices={available}"
    return None


def _list_problem(wanted: list[Any], available: int, noun: str, number: int, host: str) -> str | None:
    shown = _shown(wanted)
    if not wanted or not all(isinstance(w, int) and not isinstance(w, bool) for w in wanted):
        return f"hardware.devices={shown}: not a list of device numbers.\nFix: for example hardware.devices=[0,1]"
    if len(set(wanted)) < len(wanted):
        fix = f"hardware.devices={_shown(list(dict.fromkeys(wanted)))}"
        return f"hardware.devices={shown} names a device twice; two ranks cannot share one.\nFix: {fix}"
    if any(not 0 <= w < available for w in wanted):
        valid = f"0 to {available - 1}" if available > 1 else "only 0"
        return f"hardware.devices={shown}: {host} has {number} {noun}.\nFix: valid are {valid}."
    return None


def _shown(ids: list[Any]) -> str:
    return "[" + ",".join(map(str, ids)) + "]"


def _unfit_text(position: int, gpu: Gpu, precision: str) -> str:
    has = ".".join(map(str, gpu.capability or ()))
    return (
        f"trainer.precision={precision}: {gpu_text(position, gpu)} cannot compute in bfloat16 (its compute capability "
        f"is {has}; {'.'.join(map(str, BF16_CAPABILITY))} can).\n"
        "Fix: trainer.precision=16-mixed, or hardware.devices=… with others."
    )


def _busy_problems(hardware: Hardware, chosen: list[int], gpus: Sequence[Gpu]) -> list[str]:
    """Other processes on the chosen GPUs, all in one message."""
    busy = [p for p in chosen if gpus[p].processes]
    if not busy:
        return []
    idle = [p for p, gpu in enumerate(gpus) if not gpu.processes]
    processes = "\n".join(f"{gpu_text(p, gpus[p])}: {processes_text(gpus[p])}" for p in busy)
    devices = _shown(hardware.devices) if isinstance(hardware.devices, list) else hardware.devices
    fewer = f"hardware.devices={_shown(idle)} takes what is free, " if idle else ""
    return [
        f"hardware.devices={devices}: other processes compute there, and would slow each other down.\n{processes}\n"
        f"Fix: {fewer}hardware.force=true takes them all the same, "
        "hardware.share=2 where the other is hpcexp too and says so, or wait."
    ]


def _thread_problems(hardware: Hardware, ranks: int, machine: Machine) -> list[str]:
    threads = hardware.threads_per_rank
    if not threads or (hardware.share or 1) > 1 or threads * ranks <= max(machine.num_cores, ranks):
        return []
    fits = max(1, machine.num_cores // ranks)
    return [
        f"hardware.threads_per_rank={threads} on {ranks} rank{'s' * (ranks != 1)}, but {machine.host} has "
        f"{machine.num_cores} CPU cores: threads would wait for each other.\n"
        f"Fix: hardware.threads_per_rank={fits}, or hardware.share=2 where that is meant."
    ]


def _strategy(wanted: str, num_ranks: int) -> tuple[str, list[str]]:
    if wanted == "auto":
        return ("single" if num_ranks == 1 else "ddp"), []
    if wanted in ("ddp", "fsdp") and num_ranks == 1:
        return "single", []
    if wanted == "single" and num_ranks > 1:
        return wanted, [f"strategy=single runs on one device, but hardware asks for {num_ranks}.\nFix: strategy=ddp"]
    return wanted, []


def _precision_problems(precision: str) -> list[str]:
    if precision == "16-mixed":
        return ["trainer.precision=16-mixed needs a GPU.\nFix: trainer.precision=bf16-mixed, which a CPU can do."]
    return []
