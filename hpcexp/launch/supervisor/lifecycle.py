"""The supervisor: one job on this machine, from its frozen plan to its final state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace as set_fields

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_json
from hpcexp.files.untrusted import folders_problem
from hpcexp.hardware.leases import leased
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.outcome import Outcome, stopped_by
from hpcexp.launch.base.polling import Supervision
from hpcexp.launch.provenance.capture import keep_lineage
from hpcexp.launch.provenance.origins import parents
from hpcexp.launch.resume.checkpoint_transfer import adopt, origin
from hpcexp.launch.resume.interrupted import (
    Continuation,
    begins_again,
    clear,
    continuation,
    go_back,
    is_blank,
    leftovers,
    tidy,
)
from hpcexp.launch.supervisor.ownership import Ownership, claimed
from hpcexp.launch.supervisor.rank_events import RankEvents
from hpcexp.launch.supervisor.ranks import Ranks
from hpcexp.launch.supervisor.system_metrics import SystemMetrics
from hpcexp.launch.supervisor.watch import Group, Watch
from hpcexp.lineage.manifest import seal
from hpcexp.plan import Plan, save_plan
from hpcexp.redaction import without_password
from hpcexp.rundir import RunDir
from hpcexp.runs.clock import ended_now, started_now
from hpcexp.runs.mark import mark
from hpcexp.runs.records.files import write
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.tracking.sync.destination import direct

Supervise = Callable[[RunDir, Sequence[int], Callable[[], None]], Supervision[Outcome]]
"""Has a run's ranks run to their end, or to a signal among those that come, or until another attempt has the run."""


def freeze(plan: Plan, found: Continuation | None = None, *, is_again: bool = False) -> RunDir:
    """Write the plan into its run directory. An earlier try that has any result is kept beside.

    Not of a run that resumes or starts again (`is_again`): its journal is replayed.
    """
    run = RunDir(Path(plan.run_dir))
    if found is None and run.plan.exists() and not (is_again or is_blank(run)):
        _set_aside(run.path)
    shown = plan.tracking_uri and without_password(plan.tracking_uri)
    try:
        if found is not None:
            go_back(run, found)
        elif is_again:
            clear(run)
        keep_lineage(run, goes_on=found is not None or is_again)
        direct(run, plan, goes_on=found is not None or is_again)
        if plan.secrets:
            write_json(run.secrets, plan.secrets, mode=0o600)
        save_plan(replace(plan, tracking_uri=shown), run.plan)
    except OSError as e:
        raise RunError(f"{run.path} cannot be written: {e.strerror}.\nFix: run.root=… where there is room.") from e
    return run


def run_here(plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
    """Run the plan on this machine. DevicesBusyError where it is to wait for devices."""
    with claimed(plan, is_sure=context.is_one_of_many), ExitStack() as devices:
        plan, device_env = on_devices(plan, devices, context)

        def supervise(run: RunDir, stop: Sequence[int], check: Callable[[], None]) -> Supervision[Outcome]:
            if stop:  # before there was anything to end
                return stopped_by(stop[0])
            with devices:  # free again before the wait for the upload
                pruner = context.pruner
                ranks = Ranks(plan, context.start, device_env, pruner.metric if pruner else None)
                reported = pruner.answering(ranks.answer) if pruner else None
                return (yield from supervised(plan, run, ranks, context, stop, reported=reported, check=check))

        return (yield from lead(plan, context, fresh=fresh, supervise=supervise))


def on_devices(plan: Plan, stack: ExitStack, context: LaunchContext) -> tuple[Plan, Mapping[str, str]]:
    """The plan with the devices that the job holds until `stack` ends, and the environment that gives them to ranks."""
    got = stack.enter_context(leased(plan, is_one_of_many=context.is_one_of_many))
    for warning in got.warnings:
        context.say(plan, warning)
    topology = replace(plan.topology, device_ids=got.device_ids)
    return replace(plan, topology=topology), got.environment()


def lead(plan: Plan, context: LaunchContext, *, fresh: bool, supervise: Supervise) -> Supervision[Outcome]:
    """Freeze the plan, have its ranks run, and leave a final state behind whatever happens.

    An interrupted run resumes, in its directory and its MLflow run, unless `fresh`. One that has no checkpoint
    yet begins with that of `run.resume_from`, where that is set.
    """
    if not fresh:
        _check_folders(RunDir(Path(plan.run_dir)))
    found = None if fresh else continuation(plan, verify=True)
    transferred = origin(plan) if found is None else None
    if found is not None:
        context.say(plan, f"Continuing from {found.text(plan)} (--fresh starts over)")
    is_again = found is None and not fresh and begins_again(plan)
    own = Ownership(RunDir(Path(plan.run_dir)), plan.settings.launch.beat_timeout_s)
    with ExitStack() as catching:  # whatever asks it to end, the state that it leaves is final
        stop = _Both(catching.enter_context(context.catching()), own.stop)
        attempt = (read_status(RunDir(Path(plan.run_dir))).attempt or 0) + 1 if is_again else 1
        catching.callback(own.end)
        if found is not None or is_again:  # one that stood still notices before anything of it is changed
            _begin(own)
        run = freeze(plan, found, is_again=is_again)
        _begin(own)
        attempt = found.attempt if found else attempt
        for warning in context.capture.begin(plan, run, attempt, parents(found, transferred)):
            context.say(plan, warning)
        mark(run)
        if transferred is not None:
            context.say(plan, f"Starting from {transferred.text(plan)}")
            adopt(transferred, run)
        status = Status(state=RunState.RUNNING, attempt=attempt, **started_now(), **own.owner.facts())
        write(run.status, status)
        context.uploader.begin(run, plan)
        outcome = Outcome(RunState.FAILED, "the supervisor itself failed", 1)
        try:
            outcome = yield from supervise(run, stop, own.check)
        except GeneratorExit:
            outcome = Outcome(RunState.KILLED, "the command that ran it let go of it", 1)
            raise
        finally:
            if not own.is_lost():  # otherwise whatever is written belongs to another attempt
                device_env = {"state": RunState(outcome.state), "cause": outcome.cause, "exit": outcome.exit}
                device_env["signal"] = outcome.signal or None
                ended = set_fields(status, **ended_now(status.started_boot_s), **device_env)
                _finish(plan, run, ended, context, own, catching)
        return outcome


def _check_folders(run: RunDir) -> None:
    """RunError where an attempt would write its files to where a link in the run's directory leads."""
    own = (run.checkpoints, run.logs, run.lineage, run.plots, run.beat.parent)
    if (problem := folders_problem(run.path, [folder.name for folder in own])) is not None:
        raise RunError(problem)


class _Both(Sequence[int]):
    """Two lists as they grow, one after the other: signals of the command, and those that are for this job alone."""

    def __init__(self, first: Sequence[int], second: Sequence[int]) -> None:
        self._parts = (first, second)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: Any) -> Any:
        return [*self._parts[0], *self._parts[1]][index]


def _begin(own: Ownership) -> None:
    try:
        own.begin()
    except OSError as e:
        raise RunError(f"{e.filename} cannot be written: {e.strerror}.\nFix: run.root=… where there is room.") from e


def _finish(
    plan: Plan, run: RunDir, status: Status, context: LaunchContext, own: Ownership, catching: ExitStack
) -> None:
    """Leave lineage, seal and final state behind, and have what is there synced."""
    context.capture.end(run)
    # Before the state is final: what has been written by then is synced.
    _seal(run, status)
    if _end(run, status):
        if status.state is RunState.FINISHED:
            tidy(run)
        own.end()
        catching.close()  # Ctrl-C no longer ends the job, but the waiting
        context.uploader.end(run, plan)


def _seal(run: RunDir, status: Status) -> None:
    """Keep the digests of all that the attempt leaves, but for what is tidied away once its state is final."""
    try:
        seal(run, status, leftovers(run) if status.state is RunState.FINISHED else ())
    except (OSError, RunError) as e:
        why = f"{run.lineage} cannot be written: {e.strerror}" if isinstance(e, OSError) else str(e).partition("\n")[0]
        print(f"{why.removesuffix('.')}. `hpcexp verify` cannot tell of {run.path}.", file=sys.stderr)


def _end(run: RunDir, status: Status) -> bool:
    """Leave the final state; whether that could be done.

    On a full disk it stays `running` there: readers see that nobody runs it, and so does the sync process once this
    command has ended.
    """
    try:
        write(run.status, status)
    except OSError as e:
        print(f"{run.status} cannot be written: {e.strerror}. The run {status.state}.", file=sys.stderr)
        return False
    return True


def supervised(
    plan: Plan,
    run: RunDir,
    group: Group,
    context: LaunchContext,
    stop: Sequence[int],
    elsewhere: Callable[[RankEvents], str | None] = lambda _: None,
    reported: Callable[[int, float], None] | None = None,
    *,
    leads: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Supervision[Outcome]:
    """Watch the processes of a job to their end. `elsewhere`: what ended the job on another machine."""
    launch, every_s = plan.settings.launch, plan.settings.tracking.system_every_s
    system_metrics = SystemMetrics(run, plan.topology, every_s if leads else None)
    try:
        shown = context.display(plan)
        try:
            events = RankEvents(group.events_fd, run.rank_log(0), shown, reported)
            trouble = partial(elsewhere, events)
            watch = Watch(group, events, run, launch.grace_s, launch.hang_s, stop, system_metrics, trouble, check)
            return (yield from watch.until_end())
        finally:
            shown.close()
            system_metrics.close()
    finally:
        group.close()


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}~{number}")).exists():
        number += 1
    path.rename(aside)
