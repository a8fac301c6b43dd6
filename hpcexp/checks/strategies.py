"""What a strategy can do with the other settings, and what it cannot."""

from __future__ import annotations

from typing import Any

from hpcexp.errors import listed
from hpcexp.plan import Steps, Topology
from hpcexp.schema import Strategy

FSDP_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def strategy_problems(config: dict[str, Any], strategy: str, accelerator: str) -> list[str]:
    """Settings that the strategy would pass over, or fail of in the job."""
    section, problems = config["strategy"], []
    if "_target_" not in section and (idle := sorted(section.keys() - {"name"})):
        problems.append(_idle(section, idle))
    if section.get("compression") == "bf16" and accelerator == "cpu":
        problems.append(
            "strategy.compression=bf16: torch can do this between GPUs only.\nFix: strategy.compression=fp16, or none."
        )
    return [*problems, *_fsdp_problems(config["trainer"])] if strategy == "fsdp" else problems


def strategy_warnings(section: dict[str, Any], topology: Topology, steps: Steps | None) -> list[str]:
    """Settings of DDP that do nothing in this run."""
    if topology.strategy != "ddp":
        return []
    warnings = []
    start = section.get("powersgd_start", 0)
    if section.get("compression") == "powersgd" and steps is not None and steps.total <= start:
        warnings.append(
            f"strategy.compression=powersgd never begins: strategy.powersgd_start={start} steps are sent in full, "
            f"and the training has {steps.total}."
        )
    if section.get("static_graph") and section.get("find_unused_parameters"):
        warnings.append(
            "strategy.find_unused_parameters=true does nothing beside strategy.static_graph=true, which finds unused "
            "parameters in the first step, and takes them for unused in all."
        )
    return warnings


def _fsdp_problems(trainer: dict[str, Any]) -> list[str]:
    problems = []
    if trainer["compile"]:
        problems.append(
            "trainer.compile=true: a model that is sharded cannot be compiled as a whole.\n"
            "Fix: trainer.compile=false, or strategy=ddp."
        )
    if trainer["precision"] not in FSDP_PRECISIONS:
        problems.append(
            f"trainer.precision={trainer['precision']}: strategy=fsdp computes in {listed(FSDP_PRECISIONS)}.\n"
            "Fix: trainer.precision=bf16-mixed, or strategy=ddp."
        )
    return problems


def _idle(section: dict[str, Any], keys: list[str]) -> str:
    """Keys that are said beside a strategy without any."""
    known = [key for key in keys if key in Strategy.__dataclass_fields__]
    shown = " ".join(f"strategy.{key}={section[key]}" for key in keys)
    fix = f"strategy=ddp {shown}" if known == keys else f"~strategy.{keys[0]}, or a group's option that takes it."
    return f"{shown}: strategy={section['name']} takes no {listed(repr(key) for key in keys)}.\nFix: {fix}"
