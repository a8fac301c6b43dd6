"""The values of an axis that can be counted, and how they are typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from hpcexp.sweep.spec.spec import Axis, Choices, Interval

Value = str | int | float


def typed_value(value: Value) -> str:
    """As it is typed in an override, which gives the same value to the last bit."""
    return repr(value) if isinstance(value, float) else str(value)


def last_value(axis: Interval) -> float:
    """The highest value that is reached in whole steps from the lowest."""
    step = _step(axis)
    low = Decimal(repr(axis.low))
    return float(low + (Decimal(repr(axis.high)) - low) // step * step)


def num_values(axis: Axis) -> int:
    """How many values an axis has that goes in steps."""
    if isinstance(axis, Choices):
        return len(axis.values)
    if axis.low == axis.high:
        return 1
    return int((Decimal(repr(axis.high)) - Decimal(repr(axis.low))) // _step(axis)) + 1


def nth_value(axis: Axis, n: int) -> Value:
    """The value of number `n`, from 0."""
    if isinstance(axis, Choices):
        return axis.values[n]
    value = Decimal(repr(axis.low)) + n * _step(axis)
    return int(value) if axis.is_int else float(value)


def grid_size(axes: Mapping[str, Axis]) -> int:
    """How many combinations of values there are."""
    return math.prod(num_values(axis) for axis in axes.values())


def grid_point(axes: Mapping[str, Axis], n: int) -> dict[str, Value]:
    """The combination of number `n`, from 0; the last axis changes fastest."""
    point: dict[str, Value] = {}
    for name, axis in reversed(list(axes.items())):
        n, i = divmod(n, num_values(axis))
        point[name] = nth_value(axis, i)
    return {name: point[name] for name in axes}


def _step(axis: Interval) -> Decimal:
    """As it is written, so that ten steps of 0.1 are 1."""
    return Decimal(repr(axis.step)) if axis.step is not None else Decimal(1)
