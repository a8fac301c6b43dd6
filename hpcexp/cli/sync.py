"""`hpcexp sync`: what MLflow did not get during a run or a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hpcexp.cli.arguments import RUN_HELP, configured_uri, find_run, parser
from hpcexp.errors import ConfigError, RunError
from hpcexp.rundir import RecordDir, RunDir, SweepDir, find_runs, find_sweeps
from hpcexp.runs.records import RunState, read_delivered
from hpcexp.runs.state import current_state, is_driven

if TYPE_CHECKING:
    from hpcexp.runs.records import Membership
    from hpcexp.tracking.mlflow.store import Stores


def sync(argv: Sequence[str]) -> int:
    """Exit status 0 when MLflow has everything, 1 when something could not be delivered."""
    from hpcexp.tracking.mlflow.credentials import Named
    from hpcexp.tracking.mlflow.store import Stores
    from hpcexp.tracking.sync.sweep import members

    p = parser("sync", "Upload to MLflow what it lacks of ended runs and sweeps. Safe to repeat.")
    p.add_argument("runs", nargs="*", help=f"{RUN_HELP} (default: all)")
    p.add_argument("--uri", help="send these runs, which MLflow does not have yet, to another store from now on")
    p.add_argument("--experiment", metavar="NAME", help="send them to another experiment")
    a = p.parse_args(argv)
    root = a.root.resolve()
    runs = [find_run(a.root, word) for word in a.runs] or list(find_runs(root))
    if not runs:
        raise RunError(f"There are no runs in {root}.\nFix: hpcexp train, or --root DIR.")
    stores, wanted = Stores(Named(lambda: [configured_uri()])), {run.path for run in runs}
    stores.name(a.uri)
    places = {s: {run.path.resolve(): place for run, place in members(s)} for s in find_sweeps(root)}
    if a.uri is not None or a.experiment is not None:
        _redirect(runs if a.runs else [], a.uri, a.experiment)
        for sweep, found in places.items():
            if mine := [run for run in runs if run.path in found]:
                _redirect_sweep(sweep, mine[0], stores)
    # The sweeps first, as their runs are shown below them.
    meant = [sweep for sweep, found in places.items() if not a.runs or wanted & found.keys()]
    sweeps = [
        _synced_sweep(sweep, stores) for sweep in meant if not (is_driven(sweep) or _is_in(sweep, RunState.RUNNING))
    ]
    place_of = {path: place for found in places.values() for path, place in found.items()}
    ended = [run for run in runs if not _is_in(run, RunState.PLANNED, RunState.RUNNING)]
    problems = [_synced(run, stores, place_of.get(run.path)) for run in ended]
    if sweeps:
        _tell(sweeps, "sweeps")
    _tell(problems, "runs")
    return int(any([*sweeps, *problems]))


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


def _redirect_sweep(sweep: SweepDir, run: RunDir, stores: Stores) -> None:
    """One that MLflow does not have yet goes where this run of it goes now."""
    from hpcexp.tracking.sync.destination import address, destined
    from hpcexp.tracking.sync.run import alone_in_turn
    from hpcexp.tracking.sync.sweep import SweepUpload

    plan = destined(run)
    with alone_in_turn(sweep):
        if not read_delivered(sweep).delivered:
            SweepUpload(sweep, stores).go_with(plan, address(run, plan), is_redirected=True)


def _synced(run: RunDir, stores: Stores, place: Membership | None) -> str | None:
    """Deliver one run, below its sweep if it has a `place` in one; what hinders it."""
    from hpcexp.tracking.sync.run_process import sync as deliver

    def delivered() -> str | None:
        return deliver(run.path, stores, None if read_delivered(run).sweep else place)

    return _tried(f"{run.path.parent.name}/{run.path.name}", delivered)


def _synced_sweep(sweep: SweepDir, stores: Stores) -> str | None:
    from hpcexp.tracking.sync.run_process import sync_sweep

    return _tried(f"sweeps/{sweep.path.name}", lambda: sync_sweep(sweep.path, stores))


def _tried(name: str, deliver: Callable[[], str | None]) -> str | None:
    try:
        problem = deliver()
    except RunError as e:
        problem = str(e)
    if problem is not None:
        print(f"{name}: {problem}")
    return problem


def _is_in(record: RecordDir, *states: str) -> bool:
    """Whether the record is in one of the states. In none where its status is damaged: delivering it tells that."""
    try:
        return current_state(record) in states
    except RunError:
        return False


def _tell(problems: Sequence[str | None], what: str) -> None:
    print(f"{problems.count(None)} of {len(problems)} ended {what} are in MLflow or need not be.")
