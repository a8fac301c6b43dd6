"""Text for people: aligned pairs and tables, paths, durations, metrics, what is left out, what cannot be seen."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_MOST_PROBLEMS = 3
_ACTIVE = re.compile(
    # Controls but for tab and line feed, which a carriage return before it may accompany; line separators; surrogates.
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
    # What Unicode calls default ignorable (UAX 44), without the variation selectors that emoji have: direction
    # overrides and isolates, characters without width, blanks that pass for letters.
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that change what is seen and are not seen themselves."""


def shown(text: str) -> str:
    r"""A text whose control and invisible characters are escaped: `\x1b`, `\u202e`. Line feeds and tabs stay."""
    return _ACTIVE.sub(_escaped, text)


def in_line(text: str) -> str:
    """`shown`, on one line."""
    return shown(text).replace("\r", "\\r").replace("\n", "\\n")


def _escaped(found: re.Match[str]) -> str:
    # From DEL on as JSON escapes them, which leaves them as they are in its strings.
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def pairs(rows: Iterable[tuple[str, object]], indent: str = "  ") -> str:
    """`name  value` lines, the values in one column; further lines of a value are indented to it."""
    texts = [(in_line(name), shown(str(value))) for name, value in rows]
    width = max((len(name) for name, _ in texts), default=0)
    pad = "\n" + indent + " " * (width + 2)
    return "\n".join(f"{indent}{name:<{width}}  {value.replace(chr(10), pad)}".rstrip() for name, value in texts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [[in_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown has it, in whose cells nothing is markup."""
    lines = [f"| {' | '.join(map(_markdown, row))} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"


def _markdown(cell: str) -> str:
    return re.sub(r"([\\|`\[\]])", r"\\\1", in_line(cell)).replace("<", "&lt;")


def csv_row(cells: Iterable[object]) -> list[object]:
    """Cells of a CSV file; an apostrophe keeps a spreadsheet from taking a text for a formula."""
    return [_csv(cell) if isinstance(cell, str) else cell for cell in cells]


def _csv(cell: str) -> str:
    return f"'{in_line(cell)}" if _is_formula(cell) else in_line(cell)


def _is_formula(cell: str) -> bool:
    return cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(cell)


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-](?:inf|nan)")


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
