"""`hpcexp why`: how a run differs from one started now."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.cli.shared.results import part_text
from hpcexp.compare.provenance_diff import Facts, compared, facts_now, facts_of_run
from hpcexp.compose.composer import Composer
from hpcexp.files.documents import read_plain
from hpcexp.planner import prepare
from hpcexp.redaction import MASK
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.status.state import current_state
from hpcexp.targets.instantiate import on_path


def why(argv: Sequence[str]) -> int:
    """Exit status 0: the same; 1: something differs; 2: a mistake."""
    p = parser("why", "Show what is the same and what differs between a run and one started now.")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="overrides of the other run (default: RUN's)")
    p.add_argument("-cd", "--config-dir", type=Path, help="a directory of config files, as for train")
    p.add_argument("-cn", "--config-name", default="config", help="the primary config file, as for train")
    a = p.parse_intermixed_args(list(argv))
    run, project = find_run(a.root, a.run), Path.cwd()
    on_path(project)
    then = facts_of_run(run)
    overrides = a.overrides or list(_with_secrets(then.plan.overrides, read_plain(run.secrets)))
    composed = Composer(project, a.config_dir, a.config_name).compose(overrides)
    now = facts_now(prepare(composed, project, ["hpcexp", "train", *overrides]), then)
    parts = compared(then, now)
    print("\n".join([_headline(run, then, now), *map(part_text, parts)]))
    differs = any(part.differing and part.counts for part in parts)
    if not differs and then.plan.signature != now.plan.signature:
        print("The signatures still differ, in something that the run did not record.", file=sys.stderr)
    return int(differs or then.plan.signature != now.plan.signature)


def _with_secrets(overrides: Sequence[str], secrets: Mapping[str, Any]) -> Iterator[str]:
    """The overrides as they were given; what is not known any more stays masked.

    Those of Hydra itself make no run another one, and could have it import what a foreign run names (`pkg://…`).
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.lstrip("+~").startswith("hydra"):
            continue
        secret = secrets.get(key.lstrip("+"))
        quoted = str(secret).replace("\\", "\\\\").replace("'", "\\'")
        yield f"{key}{equals}'{quoted}'" if MASK in value and secret is not None else override


def _headline(run: RunDir, then: Facts, now: Facts) -> str:
    name = f"{then.plan.experiment}/{run.path.name}"
    if then.plan.signature != now.plan.signature:
        return f"{name} differs from a run started now: {now.plan.experiment}/{now.plan.name}"
    state = current_state(run)
    would = "skip it" if state is RunState.FINISHED else "wait for it" if state is RunState.RUNNING else "resume it"
    return f"{name} equals a run started now: `hpcexp train` would {would}"
