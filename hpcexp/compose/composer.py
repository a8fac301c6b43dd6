"""Overrides in, one resolved configuration out."""

from __future__ import annotations

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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpcexp.compose.failures import FAILURES
from hpcexp.compose.fast_hydra import loader
from hpcexp.compose.sources import conf_dirs
from hpcexp.errors import ConfigError
from hpcexp.schema.keys import OPEN_SECTIONS, Config
from hpcexp.schema.settings import Settings

OPEN = tuple(f"{section}." for section in (*OPEN_SECTIONS, "callbacks", "tracking.tags", "trainer.extra"))
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
        ConfigStore.instance().store(name="schema", node=Config, provider="hpcexp")
        GlobalHydra.instance().clear()
        self.loader = loader(_search_path(self.dirs))
        self.hydra = Hydra(task_name="hpcexp", config_loader=self.loader)
        GlobalHydra.instance().initialize(self.hydra)

    def load(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Hydra's own result, its `hydra` node included. CompositionError names all that does not compose."""
        try:
            return self._load(overrides, mode)
        except (AttributeError, AssertionError) as e:  # what Hydra ends in where no file has made the mapping
            if given := [o for o in overrides if o.lstrip("+").startswith("hydra.sweeper.params")]:
                fix = "Fix: give the axes themselves, as in: seed=1,2,3; or hydra.sweeper.params in a config file."
                raise ConfigError(f"{given[0]}: Hydra takes axes there from config files only.\n{fix}") from e
            raise

    def repaired(self, overrides: list[str]) -> list[str]:
        """`++model.x=1` for `model.x=1`: an argument of a target need not stand in its file to be given."""
        return [_as_addition(o) for o in overrides]

    def diagnosis(self, overrides: list[str], mode: RunMode, error: Exception) -> CompositionError:
        """What is wrong with overrides on which Hydra raised `error`."""
        from hpcexp.compose.diagnose import diagnose

        found = diagnose(self.loader, self.config_name, self.repaired(overrides), mode, error)
        return CompositionError(found.problems, found.good)

    def compose(self, overrides: list[str], *, in_sweep: bool = False) -> Composed:
        """The experiment these overrides ask for. What does not compose is left out and named in `problems`.

        Axes of `hydra.sweeper.params` are a problem of one run, and none of a sweep's job.
        """
        try:
            cfg = self.load(overrides)
            return replace(composed(cfg), problems=() if in_sweep else _axes_outside_multirun(cfg))
        except CompositionError as e:
            if e.good is None:
                raise
            rest = composed(self.loader.load_configuration(self.config_name, e.good, RunMode.RUN))
            return replace(rest, problems=tuple(e.problems))

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
            return self.loader.load_configuration(self.config_name, overrides, mode)
        except FAILURES as first:
            try:
                return self.loader.load_configuration(self.config_name, self.repaired(overrides), mode)
            except FAILURES:
                raise self.diagnosis(overrides, mode, first) from first


def composed(cfg: DictConfig) -> Composed:
    """Hydra's result as plain, resolved data."""
    given = cast(list[str], OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False))
    overrides = tuple(map(as_given, given))
    try:
        with without_hydra(cfg):
            config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as e:
        from hpcexp.compose.diagnose import node_problem

        raise ConfigError(node_problem(e)) from e
    assert isinstance(config, dict)
    return Composed({str(k): v for k, v in config.items()}, overrides, choices(cfg))


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
    """The override without what `Composer.repaired` put before it."""
    plain = override.removeprefix("++")
    return plain if _as_addition(plain) == override else override


def _axes_outside_multirun(cfg: DictConfig) -> tuple[str, ...]:
    axes = cfg.hydra.sweeper.get("params") or {}
    if not axes:
        return ()
    return (f"hydra.sweeper.params has axes ({', '.join(axes)}), but this is one run.\nFix: add -m to run them all.",)


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
