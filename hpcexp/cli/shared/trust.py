"""`--trust`: before code runs that a run names which is not this user's, in this project, he is asked."""

from __future__ import annotations

import argparse
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.plan import load_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.mark import PLAN, doubts

RUNS_CODE = (
    "This executes the code that the run names, with your rights. hpcexp asks first, unless you created the run in "
    "this project."
)


def add_trust(p: argparse.ArgumentParser) -> None:
    """The option, and what it is for."""
    p.add_argument("--trust", action="store_true", help="use a run of others or of another project without asking")
    p.epilog = RUNS_CODE


def check_trust(run: RunDir, *, is_trusted: bool, names: Sequence[str] = PLAN) -> None:
    """Return where the run's code may be run; otherwise ask. RunError where nobody can be asked, or says no.

    Only the plan is read. `names`: the run's files that name the code.
    """
    if is_trusted:
        return
    plan = load_plan(run.plan)
    reasons = list(doubts(run, plan, names))
    if not reasons:
        return
    project = Path(plan.lineage["project"])
    question = (
        f"{run.path} is not known to be a run that you made in this project:\n"
        + "".join(f"  {reason}\n" for reason in reasons)
        + f"Using it executes the code that it names, with your rights; it belongs to {_owner(run.path)}."
    )
    fix = f"Fix: read {run.plan} and the code in {project} first, then repeat with --trust."
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise RunError(f"{question}\n{fix}")
    print(f"{question}\nRun it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RunError(f"Nothing was executed.\n{fix}")


def _owner(path: Path) -> str:
    user = path.stat().st_uid
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
