"""Settings of `hydra.sweeper` as files for Hydra's Optuna plugin have them: taken, or refused with hpcexp's word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcexp.errors import did_you_mean, listed

PLUGIN = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
"""The plugin's class, which files of its users name."""
TAKEN = ("sampler", "pruner", "storage", "study_name", "seed", "n_trials", "n_jobs", "metric", "direction", "params")
_SAMPLERS = {
    "TPESampler": "tpe",
    "CmaEsSampler": "cmaes",
    "RandomSampler": "random",
    "GridSampler": "grid",
    "NSGAIISampler": "nsga2",
}
_AS_ALWAYS: dict[str, tuple[Any, ...]] = {
    "n_startup_trials": (10,),
    "n_ei_candidates": (24,),
    "prior_weight": (1.0,),
    "consider_prior": (True,),
    "consider_magic_clip": (True,),
    "consider_endpoints": (False,),
    "multivariate": (True,),
    "constant_liar": (True,),
    "warn_independent_sampling": (True, False),
}
"""Arguments of a sampler → the values that it has in hpcexp in any case."""
_OTHERS = {
    "search_space": "Fix: hydra.sweeper.params, as {optimizer.lr: 'tag(log, interval(1e-4, 0.1))'}.",
    "custom_search_space": "Fix: hydra.sweeper.params; the axes of a search are the same for all trials.",
}


def translated(given: Mapping[str, Any]) -> tuple[dict[str, Any], bool, list[str]]:
    """The settings that `TAKEN` names, whether a failed trial ends the search, and what cannot be taken."""
    settings = {key: given.get(key) for key in TAKEN}
    settings["pruner"] = settings["pruner"] or "none"
    sampler, seed, problems = _sampler(settings["sampler"])
    settings["sampler"] = sampler
    if seed is not None:
        settings["seed"] = seed
    rate = given.get("max_failure_rate")
    if rate not in (None, 0, 1):
        problems.append(
            f"hydra.sweeper.max_failure_rate={rate}: a search stops at the first failed trial, or at none.\n"
            "Fix: hydra.sweeper.max_failure_rate=0, or =1."
        )
    for key, value in given.items():
        if key in _OTHERS and value is not None:
            problems.append(f"hydra.sweeper.{key}: hpcexp reads no search space there.\n{_OTHERS[key]}")
        elif key not in {*TAKEN, *_OTHERS, "_target_", "max_failure_rate"}:
            known = [*TAKEN, "max_failure_rate"]
            fix = f"{did_you_mean(key, known)}Valid are: {listed(known)}."
            problems.append(f"hydra.sweeper.{key}: a search has no such setting.\nFix: {fix}")
    return settings, rate == 0, problems


def _sampler(node: Any) -> tuple[Any, int | None, list[str]]:
    """The sampler's name, its seed, and arguments that are not taken."""
    if not isinstance(node, Mapping):
        return node or "tpe", None, []
    target = str(node.get("_target_"))
    name = _SAMPLERS.get(target.rpartition(".")[2])
    if name is None or not target.startswith("optuna."):
        return "tpe", None, [f"hydra.sweeper.sampler._target_={target}: hpcexp has {listed(_SAMPLERS.values())}."]
    problems = [
        f"hydra.sweeper.sampler.{key}={value}: hpcexp's {name} decides this itself.\nFix: leave it out."
        for key, value in node.items()
        if key not in ("_target_", "seed") and value not in _AS_ALWAYS.get(str(key), ())
    ]
    return name, node.get("seed"), problems
