"""`hpcexp sync`: sends MLflow what it lacks of runs and sweeps."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.cli.shared.arguments import RUN_HELP, configured_uri, find_run, parser
from hpcexp.errors import ConfigError, RunError
from hpcexp.rundir import RecordDir, RunDir, SweepDir, find_runs, find_sweeps
from hpcexp.runs.records.status import RunState
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.status.state import current_state, is_driven

if TYPE_CHECKING:
    from hpcexp.runs.records.sync import Membership
    from hpcexp.tracking.mlflow.store import Stores

    Members = Mapping[SweepDir, Mapping[Path, Membership]]
    """Sweep → path of each of its runs → the run's place in it."""


def sync(argv: Sequence[str]) -> int:
    """Exit status 0 when MLflow has everything, 1 when something could not be sent."""
    from hpcexp.tracking.mlflow.credentials import Named
    from hpcexp.tracking.mlflow.store import Stores

    a = _arguments(argv)
    root = a.root.resolve()
    runs = [find_run(a.root, word) for word in a.runs] or list(find_runs(root))
    if not runs:
        raise RunError(f"There are no runs in {root}.\nFix: hpcexp train, or --root DIR.")
    stores, members = Stores(Named(lambda: [configured_uri()])), _members(root)
    stores.name(a.uri)
    if a.uri is not None or a.experiment is not None:
        _redirect(runs if a.runs else [], a.uri, a.experiment)
        _redirect_sweeps(runs, members, stores)
    # The sweeps first, as MLflow shows their runs below them.
    sweeps = _sync_sweeps(runs if a.runs else None, members, stores)
    problems = _sync_runs(runs, members, stores)
    if sweeps:
        _report(sweeps, "sweeps")
    _report(problems, "runs")
    return int(any([*sweeps, *problems]))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("sync", "Upload to MLflow what it lacks of ended runs and sweeps. Safe to repeat.")
    p.add_argument("runs", nargs="*", help=f"{RUN_HELP} (default: all)")
    p.add_argument("--uri", help="send these runs, which MLflow does not have yet, to another store from now on")
    p.add_argument("--experiment", metavar="NAME", help="send them to another experiment")
    return p.parse_args(argv)


def _members(root: Path) -> Members:
    from hpcexp.tracking.sync.sweep_upload import members

    return {sweep: {run.path.resolve(): place for run, place in members(sweep)} for sweep in find_sweeps(root)}


def _redirect(runs: Sequence[RunDir], uri: str | None, experiment: str | None) -> None:
    from hpcexp.tracking.sync.destination import check_redirect, redirect
    from hpcexp.tracking.sync.run import alone_in_turn

    if not runs:
        raise ConfigError("--uri and --experiment are for runs that are named.\nFix: hpcexp sync RUN… --uri …")
    for run in runs:
        check_redirect(run, uri, experiment)
    for run in runs:
        with alone_in_turn(run):
            redirect(run, uri, experiment)


def _redirect_sweeps(runs: Sequence[RunDir], members: Members, stores: Stores) -> None:
    """Sweeps that MLflow does not have yet go where the first of their runs goes now."""
    from hpcexp.tracking.sync.destination import address, destined
    from hpcexp.tracking.sync.run import alone_in_turn
    from hpcexp.tracking.sync.sweep_upload import SweepUpload

    for sweep, found in members.items():
        first = next((run for run in runs if run.path in found), None)
        if first is None:
            continue
        plan = destined(first)
        with alone_in_turn(sweep):
            if not read_sync_record(sweep).synced:
                SweepUpload(sweep, stores).go_with(plan, address(first, plan), is_redirected=True)


def _sync_sweeps(runs: Sequence[RunDir] | None, members: Members, stores: Stores) -> list[str | None]:
    """Sync the sweeps that some of the runs belong to, or all, unless they run; a problem or None for each."""
    from hpcexp.tracking.sync.run_process import sync_sweep

    def synced(sweep: SweepDir) -> str | None:
        return _tried(f"sweeps/{sweep.path.name}", lambda: sync_sweep(sweep.path, stores))

    wanted = None if runs is None else {run.path for run in runs}
    meant = [sweep for sweep, found in members.items() if wanted is None or wanted & found.keys()]
    return [synced(sweep) for sweep in meant if not (is_driven(sweep) or _is_in(sweep, RunState.RUNNING))]


def _sync_runs(runs: Sequence[RunDir], members: Members, stores: Stores) -> list[str | None]:
    """Sync the runs that have ended, below their sweeps; a problem or None for each."""
    from hpcexp.tracking.sync.run_process import sync as sync_run

    place_of = {path: place for found in members.values() for path, place in found.items()}

    def synced(run: RunDir) -> str | None:
        def step() -> str | None:
            return sync_run(run.path, stores, None if read_sync_record(run).sweep else place_of.get(run.path))

        return _tried(f"{run.path.parent.name}/{run.path.name}", step)

    return [synced(run) for run in runs if not _is_in(run, RunState.PLANNED, RunState.RUNNING)]


def _tried(name: str, step: Callable[[], str | None]) -> str | None:
    try:
        problem = step()
    except RunError as e:
        problem = str(e)
    if problem is not None:
        print(f"{name}: {problem}")
    return problem


def _is_in(record: RecordDir, *states: RunState) -> bool:
    """Whether the record is in one of the states; False where its status is damaged, which syncing it reports."""
    try:
        return current_state(record) in states
    except RunError:
        return False


def _report(problems: Sequence[str | None], what: str) -> None:
    print(f"{problems.count(None)} of {len(problems)} ended {what} are in MLflow or need not be.")
