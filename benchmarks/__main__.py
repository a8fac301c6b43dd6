"""`python -m benchmarks [NAME …] [--pairs N]`: run all or the named ones, and print one table.

Every ratio is between two things measured in the same run, in turns. CPU time is user + system on one thread; the
checkpoint's, that of two ranks and some rows of launching and sweeps are wall-clock time.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import HEADER
from benchmarks.size import choose_smallest

NAMES = (
    "planning",
    "composing",
    "coldstart",
    "launching",
    "sweeps",
    "step",
    "own_module",
    "ddp",
    "sync",
    "recording",
    "checkpoint",
    "resume",
    "compare",
)


def main() -> None:
    """Print each benchmark's lines as soon as they are known."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--pairs", type=int, help="rounds that count; each benchmark has its own number")
    parser.add_argument("--smallest", action="store_true", help="one small round: shows what works, and no figures")
    parser.add_argument("--directory", type=Path, help="where scratch files go; a checkpoint is timed on its disk")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if arguments.smallest:
        choose_smallest()
    print(HEADER, flush=True)
    for name in arguments.names or NAMES:
        run(name, 1 if arguments.smallest else arguments.pairs, arguments.directory)


def run(name: str, pairs: int | None, directory: Path | None) -> None:
    """Print the lines of one benchmark."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for row in benchmark.rows(pairs or benchmark.PAIRS, Path(scratch)):
            print(row.markdown(), flush=True)
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
