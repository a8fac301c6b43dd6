"""The arguments after `train` and `plan`: Hydra's own, in any order, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def parser(verb: str, summary: str) -> argparse.ArgumentParser:
    """The parser of a verb that takes overrides. It reads Hydra's flags, wherever they stand between overrides."""
    p = argparse.ArgumentParser(
        prog=f"hpcexp {verb}",
        description=summary,
        epilog=f"Groups and keys: `hpcexp help`. All of the configuration: `hpcexp {verb} --cfg job`.",
    )
    add = p.add_argument
    add("overrides", nargs="*", metavar="OVERRIDE", help="key=value or group=option, as in Hydra; +key=value adds")
    add("-m", "--multirun", action="store_true", help="every combination of the comma-separated values")
    add("-c", "--cfg", choices=("job", "hydra", "all"), help="show the composed configuration and stop")
    add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    add("-p", "--package", help="with --cfg: only this part, for example optimizer")
    add("-i", "--info", nargs="?", const="all", choices=INFO, help="show how Hydra composes the configuration and stop")
    add("-cd", "--config-dir", type=Path, help="a directory of config files that add to and shadow all others")
    add("-cn", "--config-name", default="config", help="the primary config file (default: config)")
    if verb == "plan":
        add("--blame", action="append", default=[], metavar="KEY", help="where the value of KEY comes from")
    else:
        add("--fresh", action="store_true", help="start over, whether the same run has finished or was interrupted")
        add("--retry-failed", action="store_true", help="with -m: run jobs again that have failed before")
        add("--fail-fast", action="store_true", help="with -m: stop at the first job that fails")
    return p


def parse(verb: str, summary: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments in `argv`, flags and overrides in any order. Exits with status 2 on a flag that does not exist."""
    return parser(verb, summary).parse_intermixed_args(list(argv))
