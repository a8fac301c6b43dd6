"""Overrides in, one resolved configuration out."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpcexp.checks.values import field_types
from hpcexp.compose.config_files import read_files_by_our_rules
from hpcexp.compose.failures import FAILURES
from hpcexp.compose.fast_hydra import loader
from hpcexp.compose.free_sections import VARS, content, free_sections, have_null_groups, section_problems
from hpcexp.compose.hydra_settings import (
    REFUSED,
    asks_multirun,
    callback_problems,
    check_mode,
    given_overrides,
    outside_multirun,
    refused,
    swept,
)
from hpcexp.compose.resolvers import know, knowing, plain_runtime, register
from hpcexp.compose.sources import conf_dirs, source_dirs
from hpcexp.compose.texts import with_texts, without_quotes
from hpcexp.compose.yaml_files import load_yaml
from hpcexp.errors import ConfigError
from hpcexp.schema.keys import MISSING, OPEN_SECTIONS, Config
from hpcexp.schema.settings import Settings
from hpcexp.targets.source_code import methods

OPEN = tuple(f"{section}." for section in (*OPEN_SECTIONS, "callbacks", "tracking.tags", "trainer.extra", VARS))
"""Where keys may be given that stand in no file: arguments of targets, and lists of the user's own."""


@dataclass(frozen=True)
class Composed:
    """A composed experiment. What is still open stands as `???`."""

    config: dict[str, Any]
    overrides: tuple[str, ...]
    """As they were given, without those of Hydra's own node."""
    choices: dict[str, str]
    """Config group → chosen option."""
    problems: tuple[str, ...] = ()
    """Overrides that did not compose and are left out here."""
    experiment_file: str | None = None
    """The file of the chosen experiment."""

    @cached_property
    def settings(self) -> Settings:
        """`config` with its types."""
        return Settings(self.config)


class CompositionError(ConfigError):
    """Overrides that do not compose, and those that do."""

    def __init__(self, problems: list[str], good: list[str] | None) -> None:
        self.good = good
        super().__init__(problems)


class Composer:
    """Hydra over the packaged config files, the project's and those of the command line."""

    def __init__(self, project: Path, config_dir: Path | None = None, config_name: str = "config") -> None:
        self.project = project
        self.config_name = config_name
        self.dirs = conf_dirs(project, config_dir)
        self._loaded: tuple[list[str], DictConfig] | None = None
        # Open at the root, for the user's own sections: what else is there `section_problems` says.
        schema = OmegaConf.structured(Config, flags={"struct": False})
        ConfigStore.instance().store(name="schema", node=schema, provider="hpcexp")
        GlobalHydra.instance().clear()
        read_files_by_our_rules()
        self.loader = loader(_search_path(self.dirs))
        self.hydra = Hydra(task_name="hpcexp", config_loader=self.loader)
        GlobalHydra.instance().initialize(self.hydra)
        register(project)

    def load(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Hydra's own result, its `hydra` node included. CompositionError names all that does not compose."""
        loaded, self._loaded = self._loaded, None
        if loaded and mode is RunMode.RUN and loaded[0] == overrides:
            know(plain_runtime(loaded[1]))
            return loaded[1]
        try:
            cfg = self._load(overrides, mode)
            know(plain_runtime(cfg))
            return cfg
        except (AttributeError, AssertionError) as e:  # what Hydra ends in where no file has made the mapping
            if given := [o for o in overrides if o.lstrip("+").startswith("hydra.sweeper.params")]:
                fix = "Fix: give the axes themselves, as in: seed=1,2,3; or hydra.sweeper.params in a config file."
                raise ConfigError(f"{given[0]}: Hydra takes axes there from config files only.\n{fix}") from e
            raise
        except KeyError as e:  # Hydra looks for the variable
            raise ConfigError(f"hydra.job.env_copy: {REFUSED['job.env_copy']}") from e

    def repaired(self, overrides: list[str]) -> list[str]:
        """`++model.x=1` for `model.x=1`: an argument of a target need not stand in its file to be given."""
        return [_as_addition(o) for o in self.with_texts(overrides)]

    def with_texts(self, overrides: list[str]) -> list[str]:
        """The overrides, with quotes where a text or an option's name looks like a number, and `~group` for null."""
        return [self._without_option(with_texts(o, self.is_group)) for o in overrides]

    def _without_option(self, override: str) -> str:
        key, _, value = override.partition("=")
        is_none = value == "null" and self.is_group(key.lstrip("+").partition("@")[0])
        return f"~{key.lstrip('+')}" if is_none else override

    def _without_plus(self, overrides: list[str]) -> list[str]:
        """`group=x` for `+group=x`, and without `~group` of null: the group is in the defaults list, or it is not."""
        kept = [
            o for o, typed in zip(overrides, self.with_texts(overrides), strict=True) if o == typed or "~" not in typed
        ]
        names = [o.lstrip("+").partition("=")[0].partition("@")[0] for o in kept]
        return self.repaired([o.lstrip("+") if self.is_group(n) else o for o, n in zip(kept, names, strict=True)])

    def is_group(self, name: str) -> bool:
        """Whether there is a config group of that name."""
        return bool(self.loader.repository.group_exists(name))

    def diagnosis(self, overrides: list[str], mode: RunMode, error: Exception) -> CompositionError:
        """What is wrong with overrides on which Hydra raised `error`."""
        from hpcexp.compose.diagnose import diagnose

        found = diagnose(self.loader, self.config_name, self.repaired(overrides), mode, error)
        return CompositionError(found.problems, found.good)

    def is_multirun(self, overrides: list[str]) -> bool:
        """Whether `hydra.mode`, in a file or an override, asks for what -m does."""
        typed = self.with_texts(overrides)
        try:
            self._loaded = overrides, self.loader.load_configuration(self.config_name, typed, RunMode.RUN)
            return asks_multirun(self._loaded[1])
        except (*FAILURES, KeyError):
            pass
        try:  # axes are none of one run, whatever hydra.mode says
            return asks_multirun(self.loader.load_configuration(self.config_name, typed, RunMode.MULTIRUN))
        except (*FAILURES, KeyError):
            return False

    def compose(
        self, overrides: list[str], *, in_sweep: bool = False, of_command: DictConfig | None = None
    ) -> Composed:
        """The experiment these overrides ask for. What does not compose is left out and named in `problems`.

        What only a multirun obeys is a problem of one run. `in_sweep`: a sweep's job; `of_command`: the command line
        composed for a multirun, unless the sweep is in a file.
        """
        try:
            cfg = self.load(overrides)
            problems = self.job_problems(cfg, of_command) if in_sweep else self.run_problems(cfg)
            made = composed(cfg)
            return replace(made, problems=(*problems, *made.problems))
        except CompositionError as e:
            if e.good is None:
                raise
            rest = composed(self.loader.load_configuration(self.config_name, e.good, RunMode.RUN))
            return replace(rest, problems=(*e.problems, *rest.problems))

    def dirs_of(self, overrides: list[str]) -> list[Path]:
        """The directories of config files, those of `hydra.searchpath` among them; earlier ones shadow later ones."""
        _, repository = self.loader._parse_overrides_and_create_caching_repo(self.config_name, overrides)
        return list(source_dirs((source.scheme(), source.path) for source in repository.get_sources()))

    def run_problems(self, cfg: DictConfig) -> list[str]:
        """Settings of Hydra's in `cfg` that one run does not obey."""
        return [*refused(cfg, self._hydra_defaults), *outside_multirun(cfg)]

    def job_problems(self, cfg: DictConfig, of_command: DictConfig | None) -> list[str]:
        """Settings of Hydra's in `cfg`, a sweep's job, that differ from those of the sweep, and others not obeyed."""
        return swept(cfg, of_command, self._hydra_defaults)

    def check_multirun(self, cfg: DictConfig) -> None:
        """ConfigError with the settings of Hydra's in `cfg` that a multirun does not obey."""
        check_mode(cfg)
        if problems := [*refused(cfg, self._hydra_defaults), *callback_problems(cfg, methods)]:
            raise ConfigError(problems)

    def _hydra_defaults(self) -> DictConfig:
        """Hydra's node as Hydra itself makes it, without any config file of hpcexp's or the user's."""
        node: DictConfig = self.loader.load_configuration(None, [], RunMode.RUN).hydra
        return node

    def shown(self, overrides: list[str], kind: str, package: str | None, *, resolve: bool) -> str:
        """`--cfg`: the `job`'s part of the configuration, `hydra`'s, or `all`, as YAML."""
        cfg = self.load(overrides)
        cfg = self.hydra.get_sanitized_cfg(cfg, kind)
        part = OmegaConf.select(cfg, package) if package else cfg
        if part is None:
            raise ConfigError(f"--package {package}: there is no such part of the configuration.")
        if not OmegaConf.is_config(part):
            return f"{part}\n"
        head = f"# @package {package}\n" if package else ""
        return head + OmegaConf.to_yaml(part, resolve=resolve)

    def _load(self, overrides: list[str], mode: RunMode) -> DictConfig:
        try:
            return self.loader.load_configuration(self.config_name, self.with_texts(overrides), mode)
        except FAILURES as first:
            for repaired in (self.repaired(overrides), self._without_plus(overrides)):
                try:
                    return self.loader.load_configuration(self.config_name, repaired, mode)
                except FAILURES:
                    continue
            raise self.diagnosis(overrides, mode, first) from first


def composed(cfg: DictConfig) -> Composed:
    """Hydra's result as plain, resolved data."""
    overrides, problems = tuple(map(as_given, given_overrides(cfg, "task"))), tuple(section_problems(cfg))
    have_null_groups(cfg)
    free = free_sections(cfg)
    try:
        with knowing(plain_runtime(cfg)), without_hydra(cfg):
            config = {str(key): plain_section(cfg, key) for key in content(cfg) if key not in free}
    except OmegaConfBaseException as e:
        from hpcexp.compose.diagnose import node_problem

        raise ConfigError(node_problem(e)) from e
    return Composed(config, overrides, choices(cfg), problems, experiment_file(cfg))


def plain_section(cfg: DictConfig, key: str) -> Any:
    """A section resolved, as plain data."""
    try:
        found = cast(Node, cfg._get_child(key))._dereference_node()
        value: Any = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found._value()
    except OmegaConfBaseException as e:
        e.full_key = e.full_key or key
        raise
    if key == "callbacks" and isinstance(value, dict):  # null switches one off
        return {name: node for name, node in value.items() if node is not None}
    if key in OPEN_SECTIONS and isinstance(value, dict):
        return {name: _typed(key, str(name), one) if isinstance(one, str) else one for name, one in value.items()}
    return value


def _typed(section: str, key: str, text: str) -> Any:
    """The number in a text, as a variable of the environment is one, where the schema has a number."""
    hint = field_types(OPEN_SECTIONS[section]).get(key)
    kinds = {hint, *typing.get_args(hint)} & {int, float, bool}
    if not kinds or text == MISSING:
        return text
    value = load_yaml(text, f"{section}.{key}")
    return value if type(value) in kinds or (float in kinds and type(value) is int) else text


def experiment_file(cfg: DictConfig) -> str | None:
    """The file of the chosen experiment: the first on the search path, as for Hydra."""
    runtime = plain_runtime(cfg)
    option = runtime["choices"].get("experiment")
    for directory in source_dirs((s["schema"], s["path"]) for s in runtime["config_sources"]) if option else ():
        if (file := directory / "experiment" / f"{option}.yaml").is_file():
            return str(file)
    return None


@contextmanager
def without_hydra(cfg: DictConfig) -> Iterator[None]:
    """Hydra's node aside: an experiment that refers to it would be another in a sweep than alone."""
    content = cfg.__dict__["_content"]
    cfg.__dict__["_content"] = {key: node for key, node in content.items() if key != "hydra"}
    try:
        yield
    finally:
        cfg.__dict__["_content"] = content


def choices(cfg: DictConfig) -> dict[str, str]:
    """Config group → chosen option, of Hydra's result."""
    return {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k and v is not None}


def as_given(override: str) -> str:
    """The override without what `Composer.repaired` added to it."""
    plain = override.removeprefix("++")
    return without_quotes(plain if _as_addition(plain) == override else override)


def _search_path(dirs: tuple[Path, ...]) -> ConfigSearchPathImpl:
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for i, directory in enumerate(dirs):
        path.append("main" if i == len(dirs) - 1 else "project", f"file://{directory}")
    for plugin in Plugins.instance().discover(SearchPathPlugin):
        cast(SearchPathPlugin, plugin()).manipulate_search_path(path)
    path.append("schema", "structured://")
    return path


def _as_addition(override: str) -> str:
    key = override.partition("=")[0]
    return f"++{override}" if key.startswith(OPEN) else override
