"""What `train` and `plan` share: their arguments, and Hydra's flags that show something and stop."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpcexp.compose.arguments import parse
from hpcexp.compose.composer import Composer
from hpcexp.targets.instantiate import on_path


def opened(verb: str, summary: str, argv: Sequence[str]) -> tuple[argparse.Namespace, Composer | None]:
    """The arguments, and a composer for them; no composer where a flag asked only to be shown something."""
    arguments = parse(verb, summary, argv)
    project = Path.cwd()
    on_path(project)
    composer = Composer(project, arguments.config_dir, arguments.config_name)
    if _shown(arguments, composer):
        return arguments, None
    arguments.multirun = arguments.multirun or composer.is_multirun(list(arguments.overrides))
    return arguments, composer


def _shown(a: argparse.Namespace, composer: Composer) -> bool:
    overrides = list(a.overrides)
    if a.cfg:
        print(composer.shown(overrides, a.cfg, a.package, resolve=a.resolve), end="")
    elif a.info:
        composer.load(overrides)
        composer.hydra.show_info(a.info, config_name=a.config_name, overrides=overrides)
    else:
        return False
    return True
