"""From a command line with axes to the overrides of each job. Nothing is composed for that."""

from __future__ import annotations

from typing import cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from hpcexp.compose.composer import Composer, as_given
from hpcexp.errors import ConfigError


def runs_through_all(cfg: DictConfig) -> bool:
    """Whether every combination is asked for, and no sweeper that chooses."""
    return bool(cfg.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"))


def task_overrides(cfg: DictConfig) -> list[str]:
    """The command line's overrides of the experiment, with what is to be resolved in each job as it is."""
    return cast(list[str], OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False))


def hydra_overrides(cfg: DictConfig) -> list[str]:
    """The command line's overrides of Hydra's own node, which every job has too."""
    return cast(list[str], OmegaConf.to_container(cfg.hydra.overrides.hydra, resolve=False))


def job_overrides(composer: Composer, cfg: DictConfig) -> list[list[str]]:
    """The overrides of every job, without those of Hydra's own node, in the order of Hydra's own sweeper.

    `cfg` is the command line composed for a multirun. Its values replace those of `hydra.sweeper.params`. ConfigError
    names axes that have no end of values.
    """
    params = [f"{key}={values}" for key, values in (cfg.hydra.sweeper.get("params") or {}).items()]
    given = composer.repaired([*params, *task_overrides(cfg)])
    parsed = OverridesParser.create(composer.loader).parse_overrides(given)
    if endless := [o for o in parsed if o.is_sweep_override() and not o.is_discrete_sweep()]:
        raise ConfigError(list(map(_endless, endless)))
    [jobs] = BasicSweeper.split_arguments(parsed, None)
    return [list(map(as_given, job)) for job in jobs]


def _endless(axis: Override) -> str:
    key = axis.key_or_group
    return (
        f"{as_given(str(axis.input_line))}: an interval has no end of values to run through.\n"
        f"Fix: {key}=range(…) or {key}=1,2,3, or hydra/sweeper=optuna searches it."
    )
