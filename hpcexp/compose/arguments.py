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
        epilog=f"Groups and keys: `hpcexp help`. The whole configuration: `hpcexp {verb} --cfg job`.",
    )
    add = p.add_argument
    add("overrides", nargs="*", metavar="OVERRIDE", help="key=value or group=option, as in Hydra; +key=value adds one")
    add("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    add("-c", "--cfg", choices=("job", "hydra", "all"), help="show the composed configuration and stop")
    add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    add("-p", "--package", help="with --cfg: only this part, for example optimizer")
    add("-i", "--info", nargs="?", const="all", choices=INFO, help="show how Hydra composes the configuration and stop")
    add("-cd", "--config-dir", type=Path, help="config files that add to all others, or replace those of equal name")
    add("-cn", "--config-name", default="config", help="the primary config file (default: config)")
    if verb == "plan":
        add("--blame", action="append", default=[], metavar="KEY", help="show where the value of KEY comes from")
    else:
        add("--fresh", action="store_true", help="start over, even if the same run has finished or could resume")
        add("--retry-failed", action="store_true", help="with -m: run failed jobs again")
        add("--fail-fast", action="store_true", help="with -m: stop at the first failure")
    return p


def parse(verb: str, summary: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments in `argv`, flags and overrides in any order. Exits with status 2 on a flag that does not exist."""
    return parser(verb, summary).parse_intermixed_args(list(argv))
