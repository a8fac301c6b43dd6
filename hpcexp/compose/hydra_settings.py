"""Every setting of Hydra's own node: obeyed, or refused with hpcexp's word for it. None is silently ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hpcexp.errors import ConfigError

OBEYED = {
    "mode": "MULTIRUN is the same as -m",
    "searchpath": "more directories of config files; in the primary config or on the command line",
    "sweeper": "with -m: which combinations run",
    "launcher": "with -m: a launcher of Hydra's starts the jobs",
    "callbacks": "with -m: on_multirun_start and on_multirun_end are called",
    "env": "",
}
"""Setting → what hpcexp does with it. `env` is where Hydra puts the group `hydra/env`, which holds other settings."""

_DIRECTORY = (
    "hpcexp names a run's directory after the run.\nFix: run.root=… for where, run.label=… for a word in its name."
)
_LOGGING = (
    "hpcexp does not configure Python's logging; what a rank writes is in logs/rank-N.log of its run.\n"
    "Fix: leave it out, or configure logging in your own code."
)
_HELP = "hpcexp has its own help (`hpcexp help`).\nFix: leave it out."
_FILLED_IN = "Hydra fills this in.\nFix: leave it out."
REFUSED = {
    "run.dir": _DIRECTORY,
    "sweep.dir": _DIRECTORY,
    "sweep.subdir": _DIRECTORY,
    "hydra_logging": _LOGGING,
    "job_logging": _LOGGING,
    "help": _HELP,
    "hydra_help": _HELP,
    "output_subdir": "a run's plan.yaml and lineage/ have what Hydra would store there.\nFix: leave it out.",
    "verbose": "hpcexp has no log levels.\nFix: leave it out; hpcexp show RUN has all that is recorded.",
    "overrides": _FILLED_IN,
    "job.name": "an experiment has a name of its own.\nFix: name=…",
    "job.chdir": "ranks do not change directory.\nFix: leave it out; relative paths are those of the project.",
    "job.override_dirname": _FILLED_IN,
    "job.id": _FILLED_IN,
    "job.num": _FILLED_IN,
    "job.config_name": "Hydra fills this in.\nFix: --config-name.",
    "job.env_set": "ranks have the environment of the command.\nFix: set it there, as in: NAME=value hpcexp train …",
    "job.env_copy": "ranks have the whole environment of the command.\nFix: leave it out.",
    "job.config": "hpcexp names a run's directory after the run.\nFix: run.label=… for a word in its name.",
    "runtime": _FILLED_IN,
}
"""Setting → why it is not obeyed, and what to say instead."""

_FILLED = ("overrides", "runtime", "job.override_dirname", "job.config_name")
"""Hydra replaces what anyone sets here, so that only the override itself shows it."""
_EMPTY: tuple[Any, ...] = (None, "???", {}, [])
_USUAL = {
    "job.name": "hpcexp",
    "job.chdir": False,
    "job.config": {"override_dirname": {"kv_sep": "=", "item_sep": ",", "exclude_keys": []}},
    "verbose": False,
}
"""Values of settings that nobody has set, which saves composing Hydra's own for every plan."""
_LOGGING_OFF = {"version": 1, "root": None, "disable_existing_loggers": False}
_OF_MULTIRUN = ("sweeper", "launcher", "callbacks")
_HOOKS = ("on_run_start", "on_run_end", "on_job_start", "on_job_end", "on_compose_config")
"""Methods of Hydra's callbacks that are not called."""


def refused(cfg: DictConfig, defaults: Callable[[], DictConfig]) -> list[str]:
    """What is set in Hydra's node of `cfg` and not obeyed. `defaults`: the node as Hydra has it by itself."""
    node, given = _plain(cfg.hydra), given_overrides(cfg, "hydra")
    changed = [key for key in REFUSED if key not in _FILLED and not _is_unset(key, _at(node, key))]
    if changed:
        usual = _plain(defaults())
        changed = [key for key in changed if _at(node, key) != _at(usual, key)]
    changed += [key for o in given if (key := refused_key(o)) and key not in changed]
    known = {key.partition(".")[0] for key in (*OBEYED, *REFUSED)}
    unknown = [f"hydra.{key}: Hydra has no such setting.\nFix: leave it out." for key in node if key not in known]
    return [*(f"{_shown(key, node)}: {REFUSED[key]}" for key in changed), *unknown]


def given_overrides(cfg: DictConfig, kind: str) -> list[str]:
    """The overrides of Hydra's node (`hydra`) or of the experiment (`task`), as they were given."""
    given: Any = OmegaConf.to_container(cfg.hydra.overrides[kind], resolve=False)
    return list(map(str, given))


def refused_key(override: str) -> str | None:
    """The setting of REFUSED that an override changes; None where it changes none, or turns one off."""
    name, _, value = override.lstrip("+~").partition("=")
    name = name.partition("@")[0].replace("/", ".").replace("hydra.output", "hydra.output_subdir", 1)
    name = name.replace("hydra.output_subdir_subdir", "hydra.output_subdir")
    found = [key for key in REFUSED if f"{name}.".startswith(f"hydra.{key}.")]
    is_off = value in ("null", "none", "disabled", "false")
    return found[0] if found and not is_off else None


def outside_multirun(cfg: DictConfig) -> list[str]:
    """What only a multirun obeys, where `cfg` is one run: axes, callbacks, and what the command line asks for."""
    found = []
    if axes := cfg.hydra.sweeper.get("params"):
        listed = ", ".join(map(str, axes))
        found.append(f"hydra.sweeper.params has axes ({listed}), but this is one run.\nFix: add -m to run them all.")
    if cfg.hydra.callbacks:
        listed = ", ".join(map(str, cfg.hydra.callbacks))
        found.append(
            f"hydra.callbacks ({listed}) are called for a multirun, but this is one run.\n"
            "Fix: add -m, or callbacks.NAME for a callback of Lightning's."
        )
    for override in given_overrides(cfg, "hydra"):
        kind = override.lstrip("+~").replace("/", ".").removeprefix("hydra.").partition(".")[0].partition("=")[0]
        is_usual = override in ("hydra/launcher=basic", "hydra/sweeper=basic")
        if kind in ("sweeper", "launcher") and ".params" not in override and not is_usual:
            found.append(f"{override}: it is about the jobs of a multirun, but this is one run.\nFix: add -m.")
    return found


def swept(cfg: DictConfig, of_command: DictConfig | None, defaults: Callable[[], DictConfig]) -> list[str]:
    """What a file that one job of a sweep chooses says of Hydra, when the sweep has begun.

    `of_command`: the command line composed for a multirun; None for a sweep in a file.
    """
    problems = refused(cfg, defaults)
    for key in _OF_MULTIRUN:
        here, there = (_plain(c.hydra)[key] if c is not None else None for c in (cfg, of_command))
        if here == there or (of_command is None and _is_basic(here)):
            continue
        what = f"hydra.{key}" + (".params" if key == "sweeper" and (here or {}).get("params") else "")
        where, fix = "a file of one of its jobs", "on the command line"
        if of_command is None:
            where, fix = "a file of its base", "in the sweep's file"
        problems.append(f"{what} is in {where}, which cannot change a sweep.\nFix: say it {fix}.")
    return problems


def callback_problems(cfg: DictConfig, methods_of: Callable[[str], set[str]]) -> list[str]:
    """Callbacks with methods that are not called. `methods_of` reads them from a class's source."""
    problems = []
    for name, node in (cfg.hydra.callbacks or {}).items():
        if unused := sorted(methods_of(str(node.get("_target_"))) & {*_HOOKS}):
            problems.append(
                f"hydra.callbacks.{name}: hpcexp calls on_multirun_start and on_multirun_end only, not "
                f"{', '.join(unused)}.\nFix: a callback of Lightning's, as callbacks.{name}."
            )
    return problems


def asks_multirun(cfg: DictConfig) -> bool:
    """Whether `hydra.mode` says what -m says."""
    return bool(cfg.hydra.mode == RunMode.MULTIRUN)


def check_mode(cfg: DictConfig) -> None:
    """ConfigError where -m was given and `hydra.mode` says one run."""
    if cfg.hydra.mode == RunMode.RUN:
        raise ConfigError("hydra.mode=RUN and -m contradict each other.\nFix: leave one of them out.")


def _plain(node: DictConfig) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(node, resolve=False)
    return {str(key): value for key, value in found.items()}


def _at(node: Mapping[str, Any], key: str) -> Any:
    found: Any = node
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _is_unset(key: str, value: Any) -> bool:
    if key in _USUAL:
        return bool(value == _USUAL[key]) or value is None
    if key in ("hydra_logging", "job_logging") and value == _LOGGING_OFF:
        return True
    return value in _EMPTY or (isinstance(value, Mapping) and all(v in _EMPTY for v in value.values()))


def _is_basic(node: Any) -> bool:
    """Whether a sweeper or launcher is Hydra's own, without settings; or there are no callbacks."""
    if not node:
        return True
    rest: Sequence[Any] = [value for key, value in node.items() if key != "_target_"]
    return str(node.get("_target_")).startswith("hydra._internal.core_plugins.basic") and not any(rest)


def _shown(key: str, node: Mapping[str, Any]) -> str:
    value = _at(node, key)
    return f"hydra.{key}={value}" if isinstance(value, str | int | bool) else f"hydra.{key}"
