"""`hpcexp cancel`: end a job that is running, from any machine that sees its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.cli.shared.trust import add_trust, check_trust
from hpcexp.errors import RunError
from hpcexp.launch.base.launcher import launcher_of
from hpcexp.plan import load_plan
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.targets.instantiate import on_path
from hpcexp.targets.source_code import is_packaged


def cancel(argv: Sequence[str]) -> int:
    """Ask the job to end with a checkpoint, and return at once."""
    p = parser("cancel", "End a running job with a checkpoint, from which the same command resumes it.")
    p.add_argument("run", help=RUN_HELP)
    add_trust(p)
    a = p.parse_args(argv)
    run = find_run(a.root, a.run)
    plan = load_plan(run.plan)
    if not is_packaged(plan.settings.launch.target):  # somebody's own launcher, which is imported
        check_trust(run, is_trusted=a.trust)
        on_path(Path(plan.lineage["project"]))
    launcher, status = launcher_of(plan.settings), read_status(run)
    if status.state is not RunState.RUNNING or launcher.is_alive(run) is False:
        raise RunError(f"{run.path} is not running: there is nothing to cancel.\nFix: `hpcexp runs` lists the runs.")
    launcher.cancel(run)
    print(f"Asked {run.path} to end; its supervisor checks every few seconds. `hpcexp show {run.path}` shows it.")
    return 0
