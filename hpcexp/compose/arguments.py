"""The arguments after `train` and `plan`: Hydra's own, in any order, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass(frozen=True)
class Arguments:
    """What was asked for on the command line."""

    overrides: tuple[str, ...]
    multirun: bool
    cfg: str | None
    resolve: bool
    package: str | None
    info: str | None
    config_dir: Path | None
    config_name: str
    completion: bool
    blame: tuple[str, ...]
    fresh: bool


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
    add("-sc", "--shell-completion", dest="completion", action="store_true", help="install=bash, uninstall=bash")
    if verb == "plan":
        add("--blame", action="append", default=[], metavar="KEY", help="where the value of KEY comes from")
    else:
        add("--fresh", action="store_true", help="run again even if the same run has finished")
    return p


def parse(verb: str, summary: str, argv: Sequence[str]) -> Arguments:
    """The arguments in `argv`. Exits with status 2 on a flag that does not exist."""
    a = parser(verb, summary).parse_intermixed_args(list(argv))
    return Arguments(
        overrides=tuple(a.overrides),
        multirun=a.multirun,
        cfg=a.cfg,
        resolve=a.resolve,
        package=a.package,
        info=a.info,
        config_dir=a.config_dir,
        config_name=a.config_name,
        completion=a.completion,
        blame=tuple(getattr(a, "blame", ())),
        fresh=getattr(a, "fresh", False),
    )
