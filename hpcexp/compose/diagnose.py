"""What is wrong with overrides that do not compose: every mistake, in hpcexp's words, with the nearest right one.

Hydra stops at its first error and hints at adding keys with `+`, which is how a misspelt key becomes a silent one.
So the overrides are tried one by one against what composes without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from hpcexp.checks.values import GLOBAL_GROUPS, unknown_key
from hpcexp.compose.failures import FAILURES
from hpcexp.compose.hydra_settings import REFUSED, refused_key
from hpcexp.errors import did_you_mean, listed, suggest


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, and what is left without it."""

    problems: list[str]
    good: list[str] | None
    """Overrides that do compose; None where the files themselves do not."""


def diagnose(
    loader: ConfigLoaderImpl, config_name: str, overrides: Iterable[str], mode: RunMode, first: Exception
) -> Diagnosis:
    """Every mistake in `overrides`; `first` in other words where no single override is to blame."""
    parsed, problems = _parse(overrides)
    sweeps = [] if mode == RunMode.MULTIRUN else [o for o in parsed if o.is_sweep_override()]
    problems += [_sweep_outside_multirun(o) for o in sweeps]
    groups = [o for o in parsed if o not in sweeps and _is_group(loader, o)]
    good = _without_problems(groups, lambda o: _group_problem(loader, o), problems)
    try:
        base = loader.load_configuration(config_name, [_line(o) for o in good], mode)
    except FAILURES as e:
        return Diagnosis([*problems, file_problem(e)], None)
    known = list(loader.list_groups(""))
    values = [o for o in parsed if o not in sweeps and o not in groups]
    good += _without_problems(values, lambda o: _value_problem(o, base, known), problems)
    return Diagnosis(problems or [file_problem(first)], [_line(o) for o in good] if problems else None)


def _without_problems(
    overrides: Iterable[Override], problem_of: Callable[[Override], str | None], problems: list[str]
) -> list[Override]:
    """The overrides without a problem; the problems of the others are added to `problems`."""
    good = []
    for override in overrides:
        problem = problem_of(override)
        if problem:
            problems.append(problem)
        else:
            good.append(override)
    return good


def file_problem(error: Exception) -> str:
    """A mistake in a config file, from the exception that composing it raised."""
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, YAMLError):
        return _no_yaml(error)
    # Hydra raises while it handles OmegaConf's error, and not `from` it.
    cause = error.__cause__ or error.__context__
    text = str(error).strip()
    where = re.search(r"In '([^']+)'", text)
    head = f"In config file {where[1]}.yaml: " if where else ""
    if isinstance(cause, OmegaConfBaseException):
        return head + node_problem(cause)
    if isinstance(error, OmegaConfBaseException):
        return head + node_problem(error)
    text = re.sub(r"^In '[^']+':\s*", "", text)
    kept = [line for line in text.splitlines() if not line.startswith(("To append to", "Could not override"))]
    group = re.search(r"Could not override '([^']+)'", text)
    if group:
        kept.insert(0, f"it overrides {group[1]}, which is not in the defaults list.")
    return head + "\n".join(kept)


def node_problem(error: OmegaConfBaseException) -> str:
    """One OmegaConf error about one key."""
    key = error.full_key or str(error.key or "")
    reason = str(error).splitlines()[0]
    if isinstance(error, InterpolationToMissingValueError | InterpolationKeyError | InterpolationResolutionError):
        return f"{key}: its interpolation cannot be resolved: {reason}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(key, _keys(error.parent_node))
    if isinstance(error, ValidationError):
        return f"{key}: {_type_reason(reason)}"
    return f"{key}: {reason}" if key else reason


def _parse(overrides: Iterable[str]) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            problems.append(_unparsable(text))
    return parsed, problems


def _unparsable(text: str) -> str:
    if "=" not in text:
        return f"{text}: not an override.\nFix: write key=value or group=option, for example optimizer.lr=0.01."
    key, _, value = text.partition("=")
    return f"{text}: the value cannot be read.\nFix: quote it, for the shell too: \"{key}='{value}'\"."


def _sweep_outside_multirun(override: Override) -> str:
    fix = f"add -m to run them all, or {override.key_or_group}=[…] for a list."
    return f"{_line(override)}: several values, but this is one run.\nFix: {fix}"


def _is_group(loader: ConfigLoaderImpl, override: Override) -> bool:
    key = override.key_or_group
    names_file = isinstance(override.value(), str | None.__class__) or override.is_sweep_override()
    if "." in key or override.is_delete():
        return False
    return names_file and bool(loader.repository.group_exists(key))


def _group_problem(loader: ConfigLoaderImpl, override: Override) -> str | None:
    group = override.key_or_group
    options = list(loader.get_group_options(group, ObjectType.CONFIG))
    if override.is_sweep_override():
        return _sweep_problem(override, lambda o: _group_problem(loader, o))
    chosen = override.value()
    if chosen is None:
        leave = f"~{group} leaves it out. " if group in GLOBAL_GROUPS else ""
        fix = f"{leave}Options: {listed(options)}."
        return f"{_line(override)}: a group has an option, not null.\nFix: {fix}"
    for option in [chosen] if isinstance(chosen, str) else []:
        if option not in options:
            fix = did_you_mean(option, options)
            return f"{_line(override)}: {group} has no option '{option}'.\nFix: {fix}Options: {listed(options)}."
    return None


def _value_problem(override: Override, base: DictConfig, groups: list[str]) -> str | None:
    if override.is_sweep_override():
        one = deepcopy(base)
        # What was added by one value would be in the way of the next.
        is_added = override.is_add()
        return _sweep_problem(override, lambda o: _value_problem(o, deepcopy(base) if is_added else one, groups))
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], base)
    except FAILURES as e:
        return _override_problem(override, e, base, groups)
    return None


def _sweep_problem(override: Override, problem_of: Callable[[Override], str | None]) -> str | None:
    """The first problem among the values of a sweep; a continuous one is tried with its start."""
    if override.is_discrete_sweep():
        values = list(override.sweep_string_iterator())
    else:
        values = [str(getattr(override.value(), "start", 0))]
    key = override.get_key_element()
    single = OverridesParser.create().parse_overrides([f"{key}={v}" for v in values])
    return next((p for p in map(problem_of, single) if p), None)


def _override_problem(override: Override, error: Exception, base: DictConfig, groups: list[str]) -> str:
    key, line = override.key_or_group, _line(override)
    if refused := refused_key(line):
        return f"{line}: {REFUSED[refused]}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ValidationError) and not override.is_delete():
        return f"{line}: {_plain_reason(override, _type_reason(str(cause).splitlines()[0]))}"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        missing = cause.full_key or key
        parent = missing.rpartition(".")[0]
        valid = _keys(OmegaConf.select(base, parent) if parent else base)
        return unknown_key(missing, {*valid, *(() if parent else groups)} - {"hydra"}, given=line)
    if override.package is not None:
        near = suggest(key, groups)
        return f"{line}: there is no config group '{key}'.\nFix: {near} Groups: {listed(groups)}."
    return f"{line}: {_plain_reason(override, str(error).strip().splitlines()[0])}"


def _plain_reason(override: Override, reason: str) -> str:
    """Hydra's and OmegaConf's words in ours."""
    key = override.key_or_group
    if reason.startswith("Could not append"):
        return f"{key} is set already.\nFix: leave the + out."
    if override.is_delete():
        return f"{key} cannot be left out{': it does not exist' if 'not exist' in reason else ''}."
    if "Cannot assign" in reason:
        return f"it is a mapping.\nFix: {key}.KEY=…"
    if "is not a ListConfig" in reason:
        return f"not a list.\nFix: {key}=[…]"
    return reason


def _type_reason(reason: str) -> str:
    expected = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
    match = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", reason)
    if match:
        return f"'{match[1]}' is not {expected.get(match[2], match[2])}."
    match = re.match(r"Value '(.*)' is not a valid bool", reason)
    if match:
        return f"'{match[1]}' is not {expected['Boolean']}."
    if "is not Optional" in reason:
        return "it cannot be null."
    return reason


def _missing_file(error: MissingConfigException) -> str:
    text = str(error).split("\nConfig search path:")[0].strip()
    where = re.search(r"In '([^']+)'", text)
    head = f"In config file {where[1]}.yaml: " if where else ""
    wanted = error.missing_cfg_file or ""
    options = [str(o) for o in (error.options or [])]
    fix = did_you_mean(wanted.rpartition("/")[2], options)
    tail = f"\nFix: {fix}Options: {listed(options)}." if options else ""
    return f"{head}there is no config file '{wanted}'.{tail}"


def _no_yaml(error: YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"A config file is not YAML: {error}"
    return f"{mark.name}:{mark.line + 1}: this is not YAML: {problem}."


def _keys(node: object) -> list[str]:
    if OmegaConf.is_dict(node):
        return [str(k) for k in node.keys() if k != "hydra"]  # type: ignore[attr-defined]  # noqa: SIM118
    return []


def _line(override: Override) -> str:
    return str(override.input_line)
