"""What a strategy can do with the other settings, and what it cannot."""

from __future__ import annotations

from hpcexp.errors import listed
from hpcexp.plan import Steps, Topology
from hpcexp.schema.keys import Strategy, Trainer
from hpcexp.schema.settings import Settings, StrategySettings

FSDP_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def strategy_problems(settings: Settings, strategy: str, accelerator: str) -> list[str]:
    """Settings that the strategy would pass over, or fail of in the job."""
    section, problems = settings.strategy, []
    if not section.has_target and (idle := sorted(section.given.keys() - {"name"})):
        problems.append(_idle(section, idle))
    if section.compression == "bf16" and accelerator == "cpu":
        problems.append(
            "strategy.compression=bf16: torch can do this between GPUs only.\nFix: strategy.compression=fp16, or none."
        )
    return [*problems, *_fsdp_problems(settings.trainer)] if strategy == "fsdp" else problems


def strategy_warnings(section: StrategySettings, topology: Topology, steps: Steps | None) -> list[str]:
    """Settings of DDP that do nothing in this run."""
    if topology.strategy != "ddp":
        return []
    warnings = []
    start = section.powersgd_start
    if section.compression == "powersgd" and steps is not None and steps.total <= start:
        warnings.append(
            f"strategy.compression=powersgd never begins: strategy.powersgd_start={start} steps are sent in full, "
            f"and the training has {steps.total}."
        )
    if section.static_graph and section.find_unused_parameters:
        warnings.append(
            "strategy.find_unused_parameters=true does nothing beside strategy.static_graph=true, which finds unused "
            "parameters in the first step, and takes them for unused in all."
        )
    return warnings


def _fsdp_problems(trainer: Trainer) -> list[str]:
    problems = []
    if trainer.compile:
        problems.append(
            "trainer.compile=true: a model that is sharded cannot be compiled as a whole.\n"
            "Fix: trainer.compile=false, or strategy=ddp."
        )
    if trainer.precision not in FSDP_PRECISIONS:
        problems.append(
            f"trainer.precision={trainer.precision}: strategy=fsdp computes in {listed(FSDP_PRECISIONS)}.\n"
            "Fix: trainer.precision=bf16-mixed, or strategy=ddp."
        )
    return problems


def _idle(section: StrategySettings, keys: list[str]) -> str:
    """Keys that are said beside a strategy without any."""
    known = [key for key in keys if key in Strategy.__dataclass_fields__]
    shown = " ".join(f"strategy.{key}={section.given[key]}" for key in keys)
    fix = f"strategy=ddp {shown}" if known == keys else f"~strategy.{keys[0]}, or a group's option that takes it."
    return f"{shown}: strategy={section.name} takes no {listed(repr(key) for key in keys)}.\nFix: {fix}"
