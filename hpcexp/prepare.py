"""From a composed configuration to a frozen plan. All that can be known to be wrong is said here, at once."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hpcexp.checks.batch import batch, steps
from hpcexp.checks.data import data_problems, metric_problems
from hpcexp.checks.devices import topology
from hpcexp.checks.machine import Machine, this_machine
from hpcexp.checks.paths import root_problems
from hpcexp.checks.source_code import defining_file, imported_roots
from hpcexp.checks.strategies import strategy_warnings
from hpcexp.checks.targets import arguments, node_problems, target_nodes, target_problems
from hpcexp.checks.values import missing_keys, subject, value_problems
from hpcexp.compose.composer import Composed
from hpcexp.data.source import Source
from hpcexp.errors import ConfigError, DataError, did_you_mean, listed
from hpcexp.lineage.code import code_digest, git_commit
from hpcexp.lineage.environment import environment
from hpcexp.lineage.signature import signature
from hpcexp.models.sizes import num_params
from hpcexp.naming import SIGNATURE_LENGTH, run_name
from hpcexp.plan import VERSION, Batch, DataFacts, Plan, Steps, Topology, load_plan
from hpcexp.record.uri import resolve_uri, unreachable, uri_problem, without_password
from hpcexp.rundir import RunDir
from hpcexp.schema import MISSING

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
    root = project / config["run"]["root"]
    uri = _tracking_uri(config, root)
    facts, fact_problems = _data_facts(config)
    wrong = value_problems(config)
    refused = {subject(problem) for problem in wrong}
    shape, shape_problems = _shape(config, machine or this_machine(), facts, refused)
    problems = [
        *composed.problems,
        *wrong,
        *(problem for problem in target_problems(config) if subject(problem) not in refused),
        *(_guarded(lambda: root_problems(root)) or []),
        *_uri_problems(config, uri),
        *fact_problems,
        *shape_problems,
        *_task_problems(config, facts, shape),
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    assert shape is not None
    return _planned(composed, project, command, uri, facts, shape)


def _planned(
    composed: Composed, project: Path, command: Sequence[str], uri: str | None, facts: DataFacts | None, shape: Shape
) -> Plan:
    """The plan, now that nothing is wrong with it."""
    config = composed.config
    code = _code(project, config)
    fingerprint = facts.fingerprint if facts else ""
    identity = signature(config, shape.topology, shape.batch, shape.steps, code=code["code.digest"], data=fingerprint)
    name = run_name(composed.overrides, config["seed"], identity, config["run"]["label"])
    directory = _directory(project / config["run"]["root"] / config["name"], name, identity)
    public = _without_secret(config["tracking"]["uri"])
    lineage = {**code, **environment(), "command": public(" ".join(command)), "project": str(project)}
    tracking = {**config["tracking"], "uri": config["tracking"]["uri"] and public(config["tracking"]["uri"])}
    return Plan(
        version=VERSION,
        name=directory.name,
        experiment=config["name"],
        run_dir=str(directory),
        signature=identity,
        config={**config, "tracking": tracking},
        overrides=tuple(map(public, composed.overrides)),
        choices=composed.choices,
        topology=shape.topology,
        batch=shape.batch,
        steps=shape.steps,
        data=facts,
        num_params=_num_params(config["model"], facts),
        tracking_uri=uri,
        lineage=lineage,
        warnings=_warnings(config, uri, shape, facts),
    )


def _shape(
    config: dict[str, Any], machine: Machine, facts: DataFacts | None, refused: Set[str]
) -> tuple[Shape | None, list[str]]:
    """How the job is spread out, and what stands against that. Of keys that are `refused` enough has been said."""
    if any(key.startswith("hardware.") for key in refused):
        return None, []  # from a device count of -1 follows nothing
    ranks, problems = _guarded(lambda: topology(config, machine)) or (None, [])
    if ranks is None:
        return None, [problem for problem in problems if subject(problem) not in refused]
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
        facts = None if problems else source.facts()
        if not problems and not isinstance(facts, DataFacts):
            problems = [f"data: {target}.facts() gives {type(facts).__name__}, not hpcexp.plan.DataFacts."]
        return facts, problems
    except DataError as e:
        return None, [str(e)]
    except Exception as e:  # noqa: BLE001 - it is the user's code that is asked, or ours with the user's arguments
        where = traceback.extract_tb(e.__traceback__)[-1]
        told = f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})"
        return None, [f"data: {target} cannot be made of these arguments, or cannot tell its facts.\n{told}"]


def _imported(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _tracking_uri(config: dict[str, Any], root: Path) -> str | None:
    tracking = config["tracking"]
    return resolve_uri(tracking["uri"], root, os.environ) if tracking["enabled"] is True else None


def _uri_problems(config: dict[str, Any], uri: str | None) -> list[str]:
    problem = uri_problem(uri) if uri else None
    if problem is None:
        return []
    by_environment = config["tracking"]["uri"] is None
    return [problem.replace("tracking.uri=", "MLFLOW_TRACKING_URI=", 1) if by_environment else problem]


def _without_secret(uri: str | None) -> Callable[[str], str]:
    """Gives a text without the password that `uri` has."""
    public = without_password(uri) if uri else ""
    return lambda text: text.replace(uri, public) if uri else text


def _task_problems(config: dict[str, Any], facts: DataFacts | None, shape: Shape | None) -> list[str]:
    problems = _guarded(lambda: [*metric_problems(config), *_monitor_problems(config)]) or []
    if facts is None or shape is None:
        return problems
    if shape.batch is None and "global_batch_size" not in config["data"]:
        problems.append("data.global_batch_size: it is needed.\nFix: data.global_batch_size=64")
    return [*problems, *(_guarded(lambda: data_problems(config, facts, shape.topology.world_size)) or [])]


def _monitor_problems(config: dict[str, Any]) -> list[str]:
    """A monitor that hpcexp's own module will not give; what a user's LightningModule gives is known only to it."""
    known = ["train/loss", "val/loss", *(f"val/{name}" for name in config["task"]["metrics"])]
    monitor = str(config["trainer"]["monitor"])
    if not str(config["model"].get("_target_")).startswith("hpcexp.models.") or monitor in (*known, MISSING):
        return []
    fix = f"{did_you_mean(monitor, known)}It gives {listed(known)}; task.metrics adds more."
    return [f"trainer.monitor={monitor}: a validation does not give it.\nFix: {fix}"]


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
    return {**git, "code.digest": code_digest(files, project, imported_roots)}


def _directory(parent: Path, name: str, identity: str) -> Path:
    """The run's directory: where this identity has run before, under whatever name, or a new one."""
    for found in sorted(parent.glob(f"*-{identity[:SIGNATURE_LENGTH]}")):
        if (found / "plan.yaml").exists() and load_plan(RunDir(found).plan).signature == identity:
            return found
    return parent / name


def _warnings(config: dict[str, Any], uri: str | None, shape: Shape, facts: DataFacts | None) -> tuple[str, ...]:
    """What is legal and yet may not be what was meant."""
    data, topology = config["data"], shape.topology
    found = [_silent(uri)] if uri else []
    found += strategy_warnings(config["strategy"], topology, shape.steps)
    if topology.accelerator == "cpu" and topology.ranks_per_node > 1 and config["strategy"]["name"] == "auto":
        found.append(
            f"{topology.ranks_per_node} processes share one CPU: one process with all cores is often faster "
            "(hardware.devices=1)."
        )
    if data.get("num_workers") and data.get("loader") != "map":
        found.append(f"data.num_workers={data['num_workers']} counts with data.loader=map only.")
    if facts is None:
        found.append(
            "The data tells nothing before the job loads it: a change in it does not make another run "
            "(--fresh runs again), and its size and shape are checked in the job."
        )
    return tuple(w for w in found if w)


@cache
def _silent(uri: str) -> str | None:
    """`unreachable`, once for all jobs of a command."""
    return unreachable(uri)


def on_path(project: Path) -> None:
    """Let `_target_`s name modules of the project, as `python -m` in it would."""
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))
