"""Statistics over seeds: a mean and its confidence, the best group, and whether another is really worse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

CONFIDENCE = 0.95

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


def grouped(items: Iterable[_T], key_of: Callable[[_T], _K]) -> dict[_K, tuple[_T, ...]]:
    """Items that have a key in common, in the order in which the keys first came."""
    found: dict[_K, list[_T]] = {}
    for item in items:
        found.setdefault(key_of(item), []).append(item)
    return {key: tuple(members) for key, members in found.items()}


def best_first(items: Iterable[_T], value_of: Callable[[_T], float | None], mode: str) -> list[_T]:
    """Ranked by a value of which more is better (`max`) or less (`min`); those without one stay in order at the end."""
    sign = -1 if mode == "max" else 1

    def worth(item: _T) -> tuple[bool, float]:
        value = value_of(item)
        return value is None, sign * (value or 0.0)

    return sorted(items, key=worth)


def mean(values: Sequence[float]) -> float | None:
    """None where there are none."""
    return statistics.fmean(values) if values else None


def half_width(values: Sequence[float]) -> float | None:
    """Half of the confidence interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # takes 0.1 s, and only the end of a report needs it

    t = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return t * statistics.stdev(values) / math.sqrt(len(values))


def mean_text(values: Sequence[float]) -> str:
    """`0.9912 ± 0.0021 (5)`: mean, confidence interval and number of values where there are several; `-` for none."""
    if not values:
        return "-"
    width = half_width(values)
    return f"{statistics.fmean(values):.4g}" + (f" ± {width:.2g} ({len(values)})" if width is not None else "")


def paired_p(ours: Mapping[_K, float], theirs: Mapping[_K, float]) -> float | None:
    """Two-sided p of the paired t-test over the seeds and folds that both have; None for fewer than two of them.

    None too where all differ by the same: so few values, of an accuracy counted in samples, show no spread.
    Not Wilcoxon's test, which with five seeds cannot come below 0.06.
    """
    differences = [ours[repeat] - theirs[repeat] for repeat in ours.keys() & theirs.keys()]
    if len(differences) < 2:
        return None
    average, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0.0:
        return 1.0 if average == 0.0 else None
    from scipy.special import stdtr

    return 2.0 * float(stdtr(len(differences) - 1, -abs(average) / deviation * math.sqrt(len(differences))))
