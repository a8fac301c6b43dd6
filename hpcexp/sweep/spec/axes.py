"""Axes in Hydra's grammar, and from a command line with axes to the overrides of each job. Composes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from hpcexp.compose.composer import Composer, as_given
from hpcexp.errors import ConfigError
from hpcexp.sweep.spec.spec import Axis, Choices, Interval
from hpcexp.sweep.spec.typed import quoted


def runs_through_all(cfg: DictConfig) -> bool:
    """Whether every combination is run, with no sweeper that chooses."""
    return bool(cfg.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"))


def task_overrides(cfg: DictConfig) -> list[str]:
    """The command line's overrides of the experiment, with interpolations left for each job to resolve."""
    return cast(list[str], OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False))


def hydra_overrides(cfg: DictConfig) -> list[str]:
    """The command line's overrides of Hydra's own node, which every job has too."""
    return cast(list[str], OmegaConf.to_container(cfg.hydra.overrides.hydra, resolve=False))


def job_overrides(composer: Composer, cfg: DictConfig) -> list[list[str]]:
    """The overrides of every job, without those of Hydra's own node, in the order of Hydra's own sweeper.

    `cfg` is the command line composed for a multirun. Its values replace those of `hydra.sweeper.params`. ConfigError
    names axes that have no end of values.
    """
    given = composer.repaired([*params_of(cfg), *task_overrides(cfg)])
    parsed = OverridesParser.create(composer.loader).parse_overrides(given)
    if endless := [o for o in parsed if o.is_sweep_override() and not o.is_discrete_sweep()]:
        raise ConfigError(list(map(_endless, endless)))
    return [list(map(as_given, job)) for job in jobs_of(parsed)]


def params_of(cfg: DictConfig) -> list[str]:
    """The axes and values of `hydra.sweeper.params`, as they are typed on the command line."""
    params = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True).get("params") or {}  # type: ignore[union-attr]
    return [f"{key}={value if isinstance(value, str) else quoted(value)}" for key, value in params.items()]


def jobs_of(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every combination, the last axis fastest; each in the order in which it was given."""
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in counting(overrides)
    ]
    return [list(job) for job in itertools.product(*values)]


def counting(overrides: Sequence[Override]) -> list[Override]:
    """The overrides without those that a later one replaces. A mapping replaces nothing, as it is merged."""
    kept: list[Override] = []
    for override in overrides:
        if is_merged(override):
            kept.append(override)
            continue
        old = [i for i, o in enumerate(kept) if not is_merged(o) and _is_replaced(o, override)]
        # At the place of the first, which is the order of Hydra's sweeper, unless a mapping is merged in between.
        at = old[0] if old and not any(map(is_merged, kept[old[0] :])) else len(kept)
        kept = [*_without(kept[:at], old, 0), override, *_without(kept[at:], old, at)]
    return kept


def _without(overrides: list[Override], dropped: Sequence[int], first: int) -> list[Override]:
    return [o for i, o in enumerate(overrides, first) if i not in dropped]


def _is_replaced(earlier: Override, later: Override) -> bool:
    one, other = earlier.get_key_element(), later.get_key_element()
    return one == other or (earlier.is_sweep_override() and one.lstrip("+") == other.lstrip("+"))


def is_merged(override: Override) -> bool:
    """Whether an override gives a mapping, which is merged with what is there."""
    value = override.value()
    return any(isinstance(v, dict) for v in (value.list if isinstance(value, ChoiceSweep) else [value]))


def axis_of(override: Override, *, is_searched: bool) -> Axis:
    """The axis of an override with several values. A search takes a range for numbers, and not for choices."""
    values = override.value()
    if isinstance(values, IntervalSweep):
        assert values.start is not None
        assert values.end is not None
        return Interval(values.start, values.end, "log" in values.tags, isinstance(values.start, int))
    if isinstance(values, RangeSweep) and is_searched:
        return _numbers(values)
    return Choices(tuple(override.sweep_string_iterator()))


def _numbers(values: RangeSweep) -> Axis:
    """From the first number of a range to its last, the end of the range not among them."""
    start, stop, step = (Decimal(repr(number)) for number in (values.start, values.stop, values.step))
    num = math.ceil((stop - start) / step)
    if num < 1:
        return Choices(())
    low, high = sorted((start, start + (num - 1) * step))
    is_log, is_int = "log" in values.tags, all(number == int(number) for number in (start, step))
    return Interval(float(low), float(high), is_log, is_int, None if is_int and abs(step) == 1 else float(abs(step)))


def _endless(axis: Override) -> str:
    key = axis.key_or_group
    return (
        f"{as_given(str(axis.input_line))}: an interval has no end of values to run through.\n"
        f"Fix: {key}=range(…) or {key}=1,2,3, or hydra/sweeper=optuna searches it."
    )
