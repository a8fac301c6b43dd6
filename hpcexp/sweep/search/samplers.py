"""Optuna's samplers and pruners as a search asks for them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hpcexp.sweep.spec.values import Value

_POPULATION = 50
"""NSGA-II's generation, where there are trials for some of them."""
_GENERATIONS = 4
_REDUCTION = 3
"""One in this many trials continues at each rung of asha and hyperband."""
_RUNGS = 3
"""Rungs of asha before the end of the longest run."""


def make_sampler(name: str, seed: int, num_objectives: int, num_trials: int | None) -> BaseSampler:
    """The sampler of that name, whose random numbers are of its own for each trial."""
    if name == "grid":
        return Pointer()
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: _tpe(seed, num_objectives),
        "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda seed: RandomSampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=_population(num_trials)),
    }
    return Seeded(makers[name], seed)


def make_pruner(name: str, max_epochs: int | None) -> BasePruner:
    """The pruner of that name. What it counts in are epochs, from 1."""
    if name == "median":
        return MedianPruner()
    if name == "asha":
        first = max(1, (max_epochs or 1) // _REDUCTION**_RUNGS)
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=_REDUCTION)
    if name == "hyperband":
        assert max_epochs is not None
        return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=_REDUCTION)
    return NopPruner()


class Seeded(BaseSampler):
    """A sampler that is rebuilt for each trial, seeded by the search's seed and the trial's number.

    A sampler with one seed would repeat its random numbers whenever a study resumes, and several drivers of a study
    would draw the same. This one draws for a trial what it would have drawn without the interruption.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._made: tuple[int, BaseSampler] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler does."""
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler does."""
        self._of(trial).after_trial(study, trial, state, values)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._made is None or self._made[0] != trial.number:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._made = (trial.number, self._make(mixed_seed(self._seed, trial.number)))
        return self._made[1]


class Pointer(BaseSampler):
    """Takes the point that it is given: a grid's next one."""

    def __init__(self) -> None:
        self.point: Mapping[str, Value] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: each value is sampled by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The point's value."""
        return self.point[param_name]


def mixed_seed(seed: int, number: int) -> int:
    """A seed for each trial; those of searches whose seeds are neighbours have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _tpe(seed: int, num_objectives: int) -> BaseSampler:
    """Trials run at the same time: without the liar, those that are asked for together would be near one another.

    Axes are taken together (multivariate) where one objective leaves enough trials to learn that from.
    """
    return TPESampler(seed=seed, multivariate=num_objectives == 1, constant_liar=True)


def _population(num_trials: int | None) -> int:
    """The first generation is random: a search of few trials has small ones."""
    return _POPULATION if num_trials is None else min(_POPULATION, max(2, num_trials // _GENERATIONS))
