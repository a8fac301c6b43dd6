"""From `hardware` and `strategy` to ranks on devices."""

from __future__ import annotations

from typing import Any

from hpcexp.checks.machine import Machine
from hpcexp.checks.nodes import nodes_problems
from hpcexp.plan import Topology


def topology(config: dict[str, Any], machine: Machine) -> tuple[Topology | None, list[str]]:
    """Which device each rank gets, or why that cannot be."""
    hardware = config["hardware"]
    accelerator, problems = _accelerator(hardware["accelerator"], machine)
    if problems:
        return None, problems
    ids, problems = _device_ids(hardware["devices"], accelerator, machine)
    problems += _precision_problems(config["trainer"]["precision"], accelerator)
    num_ranks = len(ids) * hardware["num_nodes"]
    strategy, more = _strategy(config["strategy"]["name"], num_ranks)
    problems += more
    problems += nodes_problems(config)
    if problems:
        return None, problems
    threads = hardware["threads_per_rank"] or max(1, machine.num_cores // len(ids))
    backend = None if num_ranks == 1 else "nccl" if accelerator == "cuda" else "gloo"
    return Topology(accelerator, ids, hardware["num_nodes"], threads, strategy, backend), []


def _accelerator(wanted: str, machine: Machine) -> tuple[str, list[str]]:
    if wanted == "auto":
        return ("cuda" if machine.num_gpus else "cpu"), []
    if wanted == "cuda" and not machine.num_gpus:
        why = "no NVIDIA device is visible (CUDA_VISIBLE_DEVICES counts)."
        return wanted, [f"hardware.accelerator=cuda: {machine.host} has no GPU: {why}\nFix: hardware=cpu"]
    return wanted, []


def _device_ids(wanted: Any, accelerator: str, machine: Machine) -> tuple[tuple[int, ...], list[str]]:
    available = machine.num_gpus if accelerator == "cuda" else machine.num_cores
    noun = "GPUs" if accelerator == "cuda" else "CPU cores, and a rank takes at least one"
    if wanted == "auto":
        return tuple(range(available if accelerator == "cuda" else 1)), []
    if wanted == "all":
        return tuple(range(available)), []
    if isinstance(wanted, list):
        return _listed_ids(wanted, available, noun, machine)
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        shown = "null" if wanted is None else wanted
        return (), [f"hardware.devices={shown}: not a number, a list of numbers, all or auto.\nFix: hardware.devices=1"]
    if wanted < 1:
        return (), [f"hardware.devices={wanted}: a job needs at least one device."]
    if wanted > available:
        fix = f"Fix: hardware.devices={available}"
        return (), [f"hardware.devices={wanted}, but {machine.host} has {available} {noun}.\n{fix}"]
    return tuple(range(wanted)), []


def _listed_ids(wanted: list[Any], available: int, noun: str, machine: Machine) -> tuple[tuple[int, ...], list[str]]:
    shown = "[" + ",".join(map(str, wanted)) + "]"
    if not wanted or not all(isinstance(w, int) and not isinstance(w, bool) for w in wanted):
        return (), [f"hardware.devices={shown}: a list of device numbers, for example [0,1]."]
    if len(set(wanted)) < len(wanted):
        return (), [f"hardware.devices={shown} names a device twice; two ranks cannot share one."]
    outside = [w for w in wanted if not 0 <= w < available]
    if outside:
        valid = f"0 to {available - 1}" if available > 1 else "only 0"
        return (), [f"hardware.devices={shown}: {machine.host} has {available} {noun}.\nFix: valid are {valid}."]
    return tuple(wanted), []


def _strategy(wanted: str, num_ranks: int) -> tuple[str, list[str]]:
    if wanted == "auto":
        return ("single" if num_ranks == 1 else "ddp"), []
    if wanted == "ddp" and num_ranks == 1:
        return "single", []
    if wanted == "single" and num_ranks > 1:
        return wanted, [f"strategy=single runs on one device, but hardware asks for {num_ranks}.\nFix: strategy=ddp"]
    return wanted, []


def _precision_problems(precision: str, accelerator: str) -> list[str]:
    if precision == "16-mixed" and accelerator == "cpu":
        return ["trainer.precision=16-mixed needs a GPU.\nFix: trainer.precision=bf16-mixed, which a CPU can do."]
    return []
