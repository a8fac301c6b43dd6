"""Numbers that stand at an axis."""

from __future__ import annotations

import math

_STEPS = {1.0: 0, 2.0: 0, 2.5: 1, 5.0: 0, 10.0: -1}
"""What round numbers may be apart, and its digits after the point."""
_SLACK = 1e-9


def linear_ticks(low: float, high: float, at_most: int) -> list[tuple[float, str]]:
    """Round numbers from `low` to `high`, evenly spaced, and how they are written."""
    rough = (high - low) / at_most
    exponent = math.floor(math.log10(rough))
    leading = next(step for step in _STEPS if step * 10.0**exponent >= rough * (1 - _SLACK))
    step, digits = leading * 10.0**exponent, max(0, _STEPS[leading] - exponent)
    numbers = range(math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK) + 1)
    form = f".{digits}f" if 1e-3 <= max(abs(low), abs(high)) < 1e6 else ".3g"
    return [(number * step, f"{number * step:{form}}") for number in numbers]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten from `low` to `high`, with 2 and 5 times them where those are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    times = (1, 2, 5) if high < 1e4 * low else (1,)
    ticks = [time * 10.0**decade for decade in decades[:: max(1, len(decades) // 10)] for time in times]
    return [(tick, f"{tick:g}") for tick in ticks if low <= tick <= high]
