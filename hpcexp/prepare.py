"""From a composed configuration to a frozen plan. All that can be known to be wrong is said here, at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hpcexp.checks.batch import batch, steps
from hpcexp.checks.devices import topology
from hpcexp.checks.machine import Machine, this_machine
from hpcexp.checks.paths import root_problems
from hpcexp.checks.source_code import defining_file, imported_roots
from hpcexp.checks.targets import arguments, node_problems, target_nodes, target_problems
from hpcexp.checks.values import MISSING, missing_keys, value_problems
from hpcexp.compose.composer import Composed
from hpcexp.data.source import Source
from hpcexp.errors import ConfigError, DataError, listed, suggest
from hpcexp.lineage.code import code_digest, git_commit
from hpcexp.lineage.environment import environment
from hpcexp.lineage.signature import signature
from hpcexp.models.sizes import num_params
from hpcexp.naming import SIGNATURE_LENGTH, run_name
from hpcexp.plan import VERSION, Batch, DataFacts, Plan, Steps, Topology, load_plan
from hpcexp.record.uri import resolve_uri, unreachable, uri_problem
from hpcexp.rundir import RunDir

HEAVY = frozenset({"torch", "pytorch_lightning", "lightning", "numpy", "pandas", "sklearn", "scipy", "PIL", "mlflow"})
"""A data set whose file imports one of these is not asked for its facts before the job runs."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shape:
    """How a job is spread out, and what is known of its length."""

    topology: Topology
    batch: Batch | None
    steps: Steps | None


def prepare(composed: Composed, project: Path, command: Sequence[str], machine: Machine | None = None) -> Plan:
    """The plan of one job; ConfigError with every mistake in it."""
    config = composed.config
    problems = [*composed.problems, *value_problems(config), *target_problems(config)]
    root = project / config["run"]["root"]
    problems += _guarded(lambda: root_problems(root)) or []
    uri = _tracking_uri(config, root)
    problems += [p for p in [uri and uri_problem(uri)] if p]
    facts, more = _data_facts(config)
    problems += more
    shape, more = _shape(config, machine or this_machine(), facts)
    problems += more + _monitor_problems(config)
    if problems or shape is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    lineage = {**_code(project, config), **environment(), "command": " ".join(command), "project": str(project)}
    identity = signature(
        config,
        world_size=shape.topology.world_size,
        accelerator=shape.topology.accelerator,
        code=lineage["code.digest"],
        data=facts.fingerprint if facts else "",
    )
    name = run_name(composed.overrides, config["seed"], identity, config["run"]["label"])
    directory = _directory(root / config["name"], name, identity)
    return Plan(
        version=VERSION,
        name=directory.name,
        experiment=config["name"],
        run_dir=str(directory),
        signature=identity,
        config=config,
        overrides=composed.overrides,
        choices=composed.choices,
        topology=shape.topology,
        batch=shape.batch,
        steps=shape.steps,
        data=facts,
        num_params=_num_params(config["model"], facts),
        tracking_uri=uri,
        lineage=lineage,
        warnings=_warnings(uri, shape.topology, composed.choices),
    )


def _shape(config: dict[str, Any], machine: Machine, facts: DataFacts | None) -> tuple[Shape | None, list[str]]:
    ranks, problems = _guarded(lambda: topology(config, machine)) or (None, [])
    if ranks is None:
        return None, problems
    divided, more = _guarded(lambda: batch(config, ranks)) or (None, [])
    length, most = _guarded(lambda: steps(config, divided, facts)) or (None, [])
    return Shape(ranks, divided, length), [*problems, *more, *most]


def _guarded(check: Callable[[], _T]) -> _T | None:
    """The check's answer; None where values it needs are missing, wrong or zero, which is reported elsewhere."""
    try:
        return check()
    except (TypeError, KeyError, ValueError, ZeroDivisionError):
        return None


def _data_facts(config: dict[str, Any]) -> tuple[DataFacts | None, list[str]]:
    """What is known of the data, where the data set can tell without heavy imports."""
    node = config["data"]
    target = node.get("_target_")
    file = defining_file(target) if isinstance(target, str) else None
    unfit = [*missing_keys(arguments("data", node)), *node_problems("data", node)] if isinstance(target, str) else []
    if file is None or imported_roots(file) & HEAVY or unfit:
        return None, []
    try:
        cls = _imported(target)
        if not (isinstance(cls, type) and issubclass(cls, Source)):
            return None, []
        source = cls(**arguments("data", node))
        problems = source.problems()
        return (None, problems) if problems else (source.facts(), [])
    except DataError as e:
        return None, [str(e)]
    except (TypeError, ValueError) as e:
        return None, [f"data: {target} cannot be made of these arguments: {e}."]


def _imported(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _tracking_uri(config: dict[str, Any], root: Path) -> str | None:
    tracking = config["tracking"]
    return resolve_uri(tracking["uri"], root, os.environ) if tracking["enabled"] is True else None


def _monitor_problems(config: dict[str, Any]) -> list[str]:
    """A monitor that hpcexp's own module will not give; what a user's LightningModule gives is known only to it."""
    trainer, metrics = config["trainer"], config["task"]["metrics"]
    known = ["train/loss", "val/loss", *(f"val/{name}" for name in metrics or [])]
    monitor = str(trainer["monitor"])
    if str(config["model"].get("_target_")).startswith("hpcexp.models.") and monitor not in (*known, MISSING):
        near = suggest(monitor, known)
        fix = f"{near[0].upper()}{near[1:]} " if near else ""
        return [
            f"trainer.monitor={monitor}: a validation does not give it.\n"
            f"Fix: {fix}It gives {listed(known)}; task.metrics adds more."
        ]
    if trainer["patience"] and trainer["val_every_epochs"] and str(trainer["monitor"]).startswith("train/"):
        return [
            f"trainer.patience={trainer['patience']} counts validations, but trainer.monitor={trainer['monitor']} "
            "is a training metric.\nFix: trainer.monitor=val/loss trainer.mode=min"
        ]
    return []


def _num_params(model: dict[str, Any], facts: DataFacts | None) -> int | None:
    if facts is None:
        return None
    given = {k: v for k, v in model.items() if k != "_target_"}
    in_shape = given.pop("in_shape", facts.input_shape)
    num_classes = given.pop("num_classes", facts.num_classes or 1)
    return num_params(model["_target_"], in_shape, num_classes, **given)


def _code(project: Path, config: dict[str, Any]) -> dict[str, Any]:
    targets = {node["_target_"] for _, node in target_nodes(config)}
    files = [f for f in map(defining_file, sorted(targets)) if f is not None]
    commit = git_commit(project)
    git = {"git.commit": commit.commit, "git.dirty": commit.dirty, "git.remote": commit.remote} if commit else {}
    return {**git, "code.digest": code_digest(files)}


def _directory(parent: Path, name: str, identity: str) -> Path:
    """The run's directory: where this identity has run before, under whatever name, or a new one."""
    for found in sorted(parent.glob(f"*-{identity[:SIGNATURE_LENGTH]}")):
        if (found / "plan.yaml").exists() and load_plan(RunDir(found).plan).signature == identity:
            return found
    return parent / name


def _warnings(uri: str | None, topology: Topology, choices: dict[str, str]) -> tuple[str, ...]:
    silent = unreachable(uri) if uri else None
    shared = None
    if topology.accelerator == "cpu" and topology.world_size > 1 and choices.get("strategy") == "auto":
        shared = (
            f"{topology.world_size} processes share one CPU: one process with all cores is often faster "
            "(hardware.devices=1)."
        )
    return tuple(w for w in (silent, shared) if w)


def on_path(project: Path) -> None:
    """Let `_target_`s name modules of the project, as `python -m` in it would."""
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))
