"""From a composed configuration to a frozen plan. All that can be known to be wrong is said here, at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from hpcexp.checks.batch import batch, limit_problems, steps
from hpcexp.checks.callbacks import refused_callbacks
from hpcexp.checks.data import split_problems
from hpcexp.checks.devices import topology
from hpcexp.checks.durations import duration_problems, with_lengths
from hpcexp.checks.paths import root_problems
from hpcexp.checks.tracking import tracking_problems
from hpcexp.checks.values import missing_keys, subject, value_problems
from hpcexp.checks.warnings import warnings_of
from hpcexp.compose.asked import COMMAND_LINE, asked_for, is_at_or_below
from hpcexp.compose.composer import Composed
from hpcexp.data.facts import data_facts
from hpcexp.data.folds import fold_problems, with_fold
from hpcexp.data_spec import DataSpec
from hpcexp.errors import ConfigError
from hpcexp.hardware.machine import Machine, this_machine
from hpcexp.launch.base.launcher import Launcher, launcher_of
from hpcexp.launch.resume.initial_weights import initial_weights
from hpcexp.lineage.code import code_digest, code_files, git_commit
from hpcexp.lineage.environment import environment
from hpcexp.lineage.signature import signature
from hpcexp.memo import Once
from hpcexp.models.sizes import num_params
from hpcexp.plan import VERSION, Batch, InitialWeights, Plan, Steps, Topology
from hpcexp.redaction import masked_command, masked_config, masked_override, without_password
from hpcexp.runs.naming import run_name
from hpcexp.schema.keys import OWN_KEYS, TARGET, Tracking
from hpcexp.schema.settings import DataSettings, ModelSettings, Settings
from hpcexp.status.run_directory import run_directory
from hpcexp.targets.data_module import data_module_problems
from hpcexp.targets.lightning_module import DATA_MODULE, callback_problems, is_endless, is_subclass, module_source
from hpcexp.targets.nodes import referenced, target_nodes
from hpcexp.targets.schedules import schedule_problems
from hpcexp.targets.source_code import Found, Parameters, defining_file, imported_roots, parameters
from hpcexp.targets.static_check import node_problems, target_problems
from hpcexp.targets.trainer_arguments import extra_problems
from hpcexp.targets.unused import decisions, manual_problems, unused_problem, without_unused
from hpcexp.tracking.mlflow.authentication import refused
from hpcexp.tracking.mlflow.uri import resolve_uri, unreachable, uri_problem
from hpcexp.train.tasks.planning import AskedTask, asked_task, without_metrics
from hpcexp.train.tasks.task import Task

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shape:
    """How a job is spread out, and what is known of its length."""

    topology: Topology
    batch: Batch | None
    steps: Steps | None


def prepare(
    composed: Composed,
    project: Path,
    command: Sequence[str],
    machine: Machine | None = None,
    once: Once | None = None,
) -> Plan:
    """The plan of one job; ConfigError with every mistake in it. `once`: what jobs that are planned together share."""
    config, settings, look = composed.config, composed.settings, once or Once()
    root = project / settings.run.root
    uri = _tracking_uri(settings.tracking, root)

    def parameters_of(target: str) -> Found:
        return look(("parameters", target), lambda: parameters(target))

    facts, fact_problems = _data_facts(settings.data, parameters_of, look)
    taken = _own_keys_taken(settings.model, parameters_of)
    asked = _asked_task(settings, facts)
    unused, unused_problems = _unused(composed, project, look)
    wrong = [
        problem
        for problem in value_problems(config)
        if not is_at_or_below(key := subject(problem), unused) and key.removeprefix("model.") not in taken
    ]
    config = without_unused(config, unused)
    settings = Settings(config)
    refused = {subject(problem) for problem in wrong}
    targets_wrong = [
        p
        for p in target_problems(_with_filled(without_metrics(config), asked.task, facts), parameters_of)
        if subject(p) not in refused
    ]
    launcher, launch_problems = _launcher(settings, refused | {subject(problem) for problem in targets_wrong}, look)
    machine = machine or (look(_asked(settings), lambda: launcher.machine(settings)) if launcher else this_machine())
    duration = duration_problems(settings.trainer, _other_lengths(composed, project))
    shape, shape_problems = _shape(config, machine, facts, refused)
    weights, weight_problems = _initial_weights(settings.model, taken, project, root, look)
    config = with_lengths(config, shape.batch if shape else None)
    settings = Settings(config)
    problems = [
        *composed.problems,
        *wrong,
        *targets_wrong,
        *(_guarded(lambda: look(("root", root), lambda: root_problems(root))) or []),
        *_uri_problems(settings.tracking, uri),
        *fact_problems,
        *launch_problems,
        *shape_problems,
        *unused_problems,
        *duration,
        *_length_problems(settings, parameters_of),
        *weight_problems,
        *limit_problems(settings.trainer),
        *callback_problems(config["callbacks"]),
        *(_guarded(lambda: extra_problems(settings.trainer.extra)) or []),
        *([] if any(subject(p).startswith("task.") for p in (*wrong, *targets_wrong)) else asked.problems),
        *_data_problems(settings, facts, shape),
        *(_guarded(lambda: _data_module_problems(settings.data, parameters_of, shape)) or []),
        *refused_callbacks(settings.callbacks or {}, is_subclass),
        *(_guarded(lambda: tracking_problems(settings.tracking.experiment, dict(settings.tracking.tags))) or []),
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    assert shape is not None
    trainer = {**config["trainer"], "mode": asked.mode}
    choices = {group: option for group, option in composed.choices.items() if group not in unused}
    resolved = replace(composed, config={**config, "trainer": trainer}, choices=choices)
    return _planned(resolved, project, command, uri, facts, shape, asked=asked, weights=weights, once=look)


def _planned(
    composed: Composed,
    project: Path,
    command: Sequence[str],
    uri: str | None,
    facts: DataSpec | None,
    shape: Shape,
    *,
    asked: AskedTask,
    weights: InitialWeights | None,
    once: Once,
) -> Plan:
    """The plan, now that nothing is wrong with it."""
    config, secrets = masked_config(composed.config)
    settings = Settings(config)
    secrets.pop("tracking.uri", None)  # no job needs it
    public = _without_secret(composed.settings.tracking.uri)
    overrides = tuple(public(masked_override(override)) for override in composed.overrides)
    sources, code = _code(project, config, once)
    fingerprint = facts.fingerprint if facts else ""
    digests = {"code": code["code.digest"], "data": fingerprint, "weights": weights.sha256 if weights else ""}
    identity = signature(config, shape.topology, shape.batch, shape.steps, **digests)
    name = run_name(overrides, settings.seed, identity, settings.run.label)
    silent = _silent(uri) if uri else None
    warnings = [*([silent] if silent else []), *warnings_of(settings, shape.topology, shape.steps, facts)]
    directory = run_directory(project / settings.run.root / settings.name, name, identity, once)
    lineage = {
        **code,
        **once("environment", environment),
        "command": public(masked_command(command)),
        "project": str(project),
        **({"experiment.file": composed.experiment_file} if composed.experiment_file else {}),
    }
    return Plan(
        version=VERSION,
        name=directory.name,
        experiment=settings.name,
        run_dir=str(directory),
        signature=identity,
        config=config,
        overrides=overrides,
        choices=composed.choices,
        topology=shape.topology,
        batch=shape.batch,
        steps=shape.steps,
        data=facts,
        num_params=_num_params(composed.settings.model, asked.task, facts),
        tracking_uri=uri,
        lineage=lineage,
        warnings=tuple(warnings),
        metrics=asked.metrics,
        initial_weights=weights,
        secrets=secrets,
        sources=sources,
    )


def _shape(
    config: dict[str, Any], machine: Machine, facts: DataSpec | None, refused: Set[str]
) -> tuple[Shape | None, list[str]]:
    """How the job is spread out, and what stands against that. Of keys that are `refused` enough has been said."""
    if any(key.startswith("hardware.") for key in refused):
        return None, []  # from a device count of -1 follows nothing
    settings = Settings(config)
    ranks, problems = _guarded(lambda: topology(settings, machine)) or (None, [])
    if ranks is None:
        return None, [problem for problem in problems if subject(problem) not in refused]
    divided, more = _guarded(lambda: batch(settings, ranks)) or (None, [])
    with_length = Settings(with_lengths(config, divided))
    length, most = _guarded(lambda: steps(with_length, divided, facts)) or (None, [])
    return Shape(ranks, divided, length), [*problems, *more, *most]


def _asked(settings: Settings) -> tuple[str, str]:
    """What a launcher is asked for its machine by: jobs that differ in nothing of it share the answer."""
    return "machine", json.dumps([settings.launch.given, vars(settings.hardware)], default=repr)


def _launcher(settings: Settings, wrong: Set[str], once: Once) -> tuple[Launcher | None, list[str]]:
    """The job's launcher, and what it cannot do; None where it cannot be made, or a key of `launch` is `wrong`."""
    if any(key.startswith("launch.") for key in wrong):
        return None, []
    try:
        launcher = once(("launcher", json.dumps(settings.launch.given, default=repr)), lambda: launcher_of(settings))
    except ConfigError as e:
        return None, e.problems
    return launcher, _guarded(lambda: launcher.problems(settings)) or []


def _guarded(check: Callable[[], _T]) -> _T | None:
    """The check's answer; None where values it needs are missing, wrong or zero, which is reported elsewhere."""
    try:
        return check()
    except (TypeError, KeyError, ValueError, ZeroDivisionError):
        return None


def _data_facts(
    data: DataSettings, parameters_of: Callable[[str], Found], once: Once
) -> tuple[DataSpec | None, list[str]]:
    """What is known of the data; nothing where its arguments are wrong, which is reported elsewhere."""
    target, given = data.given.get(TARGET), data.node
    if not isinstance(target, str) or [*missing_keys(given), *node_problems("data", data.given, parameters_of)]:
        return None, []
    question = ("data", target, data.fingerprint, json.dumps(given, default=repr))
    facts, problems = once(question, lambda: data_facts(target, given, data.fingerprint))
    if wrong := _guarded(lambda: fold_problems(data, facts)):
        return None, [*problems, *wrong]
    return facts and (_guarded(lambda: with_fold(facts, data)) or facts), problems


def _unused(composed: Composed, project: Path, once: Once) -> tuple[tuple[str, ...], list[str]]:
    """Settings that a user's LightningModule does not read, and those of them that were asked for."""
    target = str(composed.settings.model.given.get(TARGET))
    source = once(("module", target), lambda: module_source(target))
    made = decisions(source, composed.config["task"])
    problems = [
        unused_problem(setting, place, decision, target)
        for decision in made
        for setting, place in _asked_for(decision.paths, composed, project)
    ]
    problems += _guarded(lambda: [*manual_problems(source, composed.settings.trainer, target)]) or []
    return tuple(path for decision in made for path in decision.unused), problems


def _other_lengths(composed: Composed, project: Path) -> list[str]:
    """Lengths that were asked for where a duration is: a duration of the command line replaces those of files."""
    if composed.settings.trainer.max_duration is None:
        return []
    lengths = [*_asked_for(("trainer.max_epochs", "trainer.max_steps"), composed, project)]
    durations = {place for _, place in _asked_for(("trainer.max_duration",), composed, project)}
    is_typed = COMMAND_LINE in durations
    return [setting for setting, place in lengths if place == COMMAND_LINE or not is_typed]


def _asked_for(paths: tuple[str, ...], composed: Composed, project: Path) -> Iterator[tuple[str, str]]:
    """Settings at or below `paths` that somebody asked for, and where."""
    return asked_for(paths, composed.overrides, composed.choices, project, composed.experiment_file)


def _length_problems(settings: Settings, parameters_of: Callable[[str], Found]) -> list[str]:
    """A schedule over a number of steps that nobody can know; of data with a length the job knows it."""
    trainer, data = settings.trainer, settings.data.given.get(TARGET)
    is_known = trainer.max_steps is not None or (trainer.max_epochs is not None and not is_endless(data))
    return schedule_problems(settings, parameters_of, is_length_known=is_known)


def _tracking_uri(tracking: Tracking, root: Path) -> str | None:
    return resolve_uri(tracking.uri, root, os.environ) if tracking.enabled is True else None


def _uri_problems(tracking: Tracking, uri: str | None) -> list[str]:
    problem = uri_problem(uri) if uri else None
    if problem is None:
        return []
    by_environment = tracking.uri is None
    return [problem.replace("tracking.uri=", "MLFLOW_TRACKING_URI=", 1) if by_environment else problem]


def _without_secret(uri: str | None) -> Callable[[str], str]:
    """Gives a text without the password that `uri` has."""
    public = without_password(uri) if uri else ""
    return lambda text: text.replace(uri, public) if uri else text


def _asked_task(settings: Settings, facts: DataSpec | None) -> AskedTask:
    """The task and what is wrong with it. A LightningModule has its own, which the job alone knows."""
    is_lightning = module_source(settings.model.given.get(TARGET)).is_lightning
    is_used = None if is_lightning is None else not is_lightning
    return asked_task(settings.task, settings.trainer, facts, is_used=is_used)


def _with_filled(config: dict[str, Any], task: Task | None, facts: DataSpec | None) -> dict[str, Any]:
    """The configuration with what the task gives the model, where that takes it."""
    model = Settings(config).model
    if task is None or facts is None or not model.has_target:
        return config
    taken = parameters(model.target)
    known = task.model_arguments(facts)
    names = taken.types if isinstance(taken, Parameters) else ()
    filled = {k: list(v) if isinstance(v, tuple) else v for k, v in known.items() if k in names}
    return {**config, "model": {**filled, **model.given}}


def _data_module_problems(data: DataSettings, parameters_of: Callable[[str], Found], shape: Shape | None) -> list[str]:
    takes = parameters_of(data.target) if data.has_target else None
    if not isinstance(takes, Parameters) or takes.takes_any or not is_subclass(data.target, DATA_MODULE):
        return []
    return data_module_problems(data, takes.types, shape.batch if shape else None)


def _own_keys_taken(model: ModelSettings, parameters_of: Callable[[str], Found]) -> frozenset[str]:
    """Keys of hpcexp's in `model` that its target takes itself: they are its own then."""
    takes = parameters_of(str(model.given.get(TARGET)))
    return OWN_KEYS["model"] & takes.types.keys() if isinstance(takes, Parameters) else frozenset()


def _initial_weights(
    model: ModelSettings, taken: Set[str], project: Path, root: Path, once: Once
) -> tuple[InitialWeights | None, list[str]]:
    """What `model.init_from` names, and why it names nothing."""
    if not isinstance(model.init_from, str) or "init_from" in taken:
        return None, []
    try:
        return once(("weights", model.init_from), lambda: initial_weights(str(model.init_from), project, root)), []
    except ConfigError as e:
        return None, e.problems


def _data_problems(settings: Settings, facts: DataSpec | None, shape: Shape | None) -> list[str]:
    if facts is None or shape is None:
        return []
    if shape.batch is None and settings.data.global_batch_size is None:
        return ["data.global_batch_size: it is needed.\nFix: data.global_batch_size=64"]
    return _guarded(lambda: split_problems(settings, facts, shape.topology.world_size)) or []


def _num_params(model: ModelSettings, task: Task | None, facts: DataSpec | None) -> int | None:
    if facts is None or task is None:
        return None
    return num_params(model.target, **{**task.model_arguments(facts), **model.arguments})


def _code(project: Path, config: dict[str, Any], once: Once) -> tuple[dict[str, str], dict[str, Any]]:
    """The files that make the result, and what is to be said of them."""
    # Where a job runs is no part of what it is: not the launcher's code.
    made = {name: section for name, section in config.items() if name != "launch"}
    targets = sorted({name for _, node in target_nodes(made) for name in referenced(node)})
    files = tuple(f for f in (once(("file", t), partial(defining_file, t)) for t in targets) if f is not None)
    commit = once(("commit", project), lambda: git_commit(project))
    git = {"git.commit": commit.commit, "git.dirty": commit.dirty, "git.remote": commit.remote} if commit else {}
    sources = once(("sources", project, files), lambda: code_files(files, project, imported_roots))
    return sources, {**git, "code.digest": once(("code", project, files), lambda: code_digest(sources))}


@cache
def _silent(uri: str) -> str | None:
    """Why the server will not take the runs, asked once for all jobs of a command."""
    return unreachable(uri) or refused(uri, os.environ)
