"""`hpcexp sync`: what MLflow did not get during a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcexp.cli.arguments import RUN_HELP, find_run, parser
from hpcexp.errors import RunError
from hpcexp.record.alive import current_state
from hpcexp.rundir import RunDir, find_runs


def sync(argv: Sequence[str]) -> int:
    """Exit status 0 when MLflow has everything, 1 when something could not be delivered."""
    p = parser("sync", "Send MLflow what it lacks of runs that have ended. Safe to repeat.")
    p.add_argument("runs", nargs="*", help=f"{RUN_HELP}; without any, all of them")
    a = p.parse_args(argv)
    chosen = [find_run(a.root, word) for word in a.runs] or list(find_runs(a.root.resolve()))
    if not chosen:
        raise RunError(f"There are no runs in {a.root.resolve()}.\nFix: hpcexp train, or --root DIR.")
    problems = [_synced(run) for run in chosen if current_state(run.read_status()) not in ("planned", "running")]
    undelivered = [p for p in problems if p is not None]
    print(f"{len(problems) - len(undelivered)} of {len(problems)} ended runs are in MLflow or need not be.")
    return 1 if undelivered else 0


def _synced(run: RunDir) -> str | None:
    """Deliver one run; what hinders it."""
    from hpcexp.record.shipper import sync as deliver

    name = Path(run.path.parent.name) / run.path.name
    try:
        problem = deliver(run.path)
    except RunError as e:
        problem = str(e)
    if problem is not None:
        print(f"{name}: {problem}")
    return problem
