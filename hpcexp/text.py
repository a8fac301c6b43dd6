"""Text for people: aligned pairs and tables, paths, durations, metrics, what is left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

_MOST_PROBLEMS = 3


def pairs(rows: Iterable[tuple[str, object]], indent: str = "  ") -> str:
    """`name  value` lines, the values in one column; further lines of a value are indented to it."""
    texts = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in texts), default=0)
    pad = "\n" + indent + " " * (width + 2)
    return "\n".join(f"{indent}{name:<{width}}  {value.replace(chr(10), pad)}".rstrip() for name, value in texts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def near(path: Path | str) -> str:
    """A path relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def metric(value: float | None) -> str:
    """Four significant digits; None, as a summary has it, is not a number."""
    return "nan" if value is None else f"{value:.4g}"


def left_out(problems: Sequence[str]) -> str:
    """A line for each of the first problems, and how many more there are; empty where there is none."""
    lines = [f"left out: {problem.partition(chr(10))[0]}\n" for problem in problems[:_MOST_PROBLEMS]]
    more = len(problems) - len(lines)
    return "".join([*lines, *([f"left out: {more} more that are damaged\n"] if more else [])])
