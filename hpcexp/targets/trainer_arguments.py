"""Arguments of Lightning's Trainer: those that hpcexp sets itself, by which keys, and those of `trainer.extra`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hpcexp.checks.values import type_problem
from hpcexp.errors import did_you_mean
from hpcexp.targets.nodes import wrong_type
from hpcexp.targets.source_code import Parameters, parameters

TRAINER = "pytorch_lightning.Trainer"

SET_BY_HPCEXP: Mapping[str, str] = {
    "accelerator": "hardware.accelerator",
    "devices": "hardware.devices",
    "num_nodes": "launch.nodes",
    "strategy": "strategy",
    "precision": "trainer.precision",
    "max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "check_val_every_n_epoch": "trainer.val_every_epochs or trainer.val_every_steps",
    "log_every_n_steps": "trainer.log_every_n_steps, with which every step is recorded",
    "deterministic": "trainer.deterministic",
    "profiler": "trainer.profiler",
    "limit_train_batches": "trainer.limit_train_batches",
    "limit_val_batches": "trainer.limit_eval_batches",
    "limit_test_batches": "trainer.limit_eval_batches",
    "callbacks": "callbacks",
    "logger": "tracking",
    "plugins": "strategy and launch",
    "default_root_dir": "run.root",
    "enable_checkpointing": "checkpoint",
    "enable_progress_bar": "launch.progress",
    "enable_model_summary": "hpcexp plan, which counts the parameters",
    "num_sanity_val_steps": "debug=fast, which runs everything once",
    "use_distributed_sampler": "nothing: hpcexp shards the data of every rank itself",
}
"""Argument of the Trainer → what sets it in hpcexp."""
_ELSEWHERE: Mapping[str, str] = {
    "max_time": "trainer.max_duration=2h, which counts the time of all attempts",
    "fast_dev_run": "debug=fast",
    "overfit_batches": "trainer.overfit_batches",
}
"""Arguments that hpcexp leaves alone and has better words for."""
_OPTIONS: Mapping[str, str] = {
    "find_unused_parameters": "strategy.find_unused_parameters=true",
    "ddp_find_unused_parameters_true": "strategy.find_unused_parameters=true",
    "static_graph": "strategy.static_graph=true",
}
"""Options of Lightning's and torch's strategies → ours."""


def extra_problems(extra: Mapping[str, Any]) -> list[str]:
    """What is wrong with `trainer.extra`, by the source of Lightning's Trainer."""
    found = parameters(TRAINER) if extra else None
    return [problem for name, value in extra.items() if (problem := _problem(name, value, found))]


def _problem(name: str, value: Any, found: Any) -> str | None:
    if way := SET_BY_HPCEXP.get(name):
        return f"trainer.extra.{name}: hpcexp sets this argument of the Trainer itself.\nFix: leave it out; see {way}."
    if way := _ELSEWHERE.get(name):
        return f"trainer.extra.{name}: hpcexp has a setting of its own for this.\nFix: {way}."
    if not isinstance(found, Parameters):
        return None
    if name not in found.types:
        known = [known for known in found.types if known not in SET_BY_HPCEXP]
        fix = did_you_mean(name, known) or f"~trainer.extra.{name} leaves it out."
        return f"trainer.extra.{name} is no argument of {TRAINER}.\nFix: {fix}"
    problem = type_problem(value, found.types[name])
    return wrong_type("trainer.extra", name, value, TRAINER, problem) if problem else None


def in_hpcexps_words(message: str) -> str:
    """What to write in hpcexp where a message of Lightning's or torch's advises to change the Trainer; else empty."""
    ways = {name: way for name, way in _OPTIONS.items() if re.search(rf"\b{name}\b", message)}
    if not ways:
        mentioned = {**SET_BY_HPCEXP, **_ELSEWHERE, "val_check_interval": "trainer.val_every_steps"}
        named = r"`{0}`|\b{0}\s*(?:=|!=|>)|Trainer\([^)]*\b{0}\b"
        ways = {name: way for name, way in mentioned.items() if re.search(named.format(name), message)}
    if not ways:
        return ""
    said = ways.values() if ways.keys() <= _OPTIONS.keys() else [f"{name} by {way}" for name, way in ways.items()]
    return f"In hpcexp: {'; '.join(dict.fromkeys(said))}."
