"""One command's work on a sweep: from planned jobs to the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace as replace_fields

from hpcexp.errors import RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.files.untrusted import UnusableFileError
from hpcexp.hardware.machine import Machine
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import Display, Silent
from hpcexp.launch.base.launcher import Launcher, launcher_of
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import signals_caught
from hpcexp.launch.base.rank_process import start_fresh
from hpcexp.launch.resume.interrupted import with_recorded_settings
from hpcexp.launch.supervisor.uploader import SweepUploader, has_work
from hpcexp.plan import JobOf, Plan
from hpcexp.redaction import masked_override
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.clock import ended_now, started_now
from hpcexp.runs.owner import Owner
from hpcexp.runs.records import Membership, RunState, Status, read_delivered, read_status, write
from hpcexp.runs.state import damage
from hpcexp.sweep.engine.driver import FAILED_FAST, Driver, Policy
from hpcexp.sweep.engine.scheduler import one_by_one, threads_for_many
from hpcexp.sweep.report import ranking
from hpcexp.sweep.report.live_view import view_for
from hpcexp.sweep.spec.spec import Objective, Spec, is_open
from hpcexp.sweep.store.budget import Meter
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.directory import ask, sweeps_dir
from hpcexp.sweep.store.jobs import Fixed, Job, JobSource
from hpcexp.sweep.store.ledger import Ledger, LedgerEntry
from hpcexp.sweep.store.results import Result, not_recorded, ranked, read_result


@dataclass(frozen=True)
class PlannedJob:
    """A planned job before it has a number."""

    overrides: tuple[str, ...]
    """The overrides that make it another job than its neighbours."""
    plan: Plan
    trial: int | None = None
    problem: str = ""
    """Why it cannot be run; the plan is then another job's."""


@dataclass(frozen=True)
class Setting:
    """Where and how a sweep is driven."""

    project: Path
    command: str
    policy: Policy
    num_jobs: int | None
    """That there will be in all, for the shares that they get of the machine; None: as many as it bears."""


class Session:
    """A sweep at work in this process. Its jobs come in one go, or a few at a time."""

    def __init__(self, spec: Spec, setting: Setting, first: Plan) -> None:
        """`first`: the plan of any of its jobs, for what all have in common."""
        monitored = Objective(first.config["trainer"]["monitor"], first.config["trainer"]["mode"])
        self.objectives = spec.objectives or (monitored,)
        self.spec = replace(spec, objectives=self.objectives)
        self.place = SweepDir(sweeps_dir(setting.project / first.config["run"]["root"]) / spec.name)
        self.outcomes: dict[int, Outcome] = {}
        self._base = tuple(map(masked_override, spec.base))
        self.why_stopped = ""
        self._setting, self._first = setting, first
        self.entries: dict[int, LedgerEntry] = {}
        self._axes_of: dict[str, dict[str, str]] = {}
        self._old: set[int] = set()
        self._warned: set[str] = set()
        self._stop: list[int] = []
        self._is_ranked: bool | None = None
        """Whether jobs record what they are ranked by; None before the first has finished."""
        self._misses = ""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The directory, this driver's claims, its shipper and its signals, for as long as it works."""
        self._asked_before = self.place.definition.read_bytes() if self.place.definition.is_file() else None
        edits = ask(self.place, self.spec, self._setting.project, self._setting.command)
        self.place.cancel.unlink(missing_ok=True)
        self._claims = Claims(self.place.path, timeout_s=self._first.config["launch"]["beat_timeout_s"])
        self._ledger = Ledger(self.place.path, self._claims)
        self._fleet = SweepUploader(self.place.path)
        self._meter = Meter(self.place.path, self._claims.token, self.spec.budget)
        tracking = self._first.config["tracking"]
        with ExitStack() as stack:
            self._claims.open()
            stack.callback(self._claims.close)
            self._begin(edits)
            is_tracked = self._first.tracking_uri is not None
            stack.callback(self._fleet.close, tracking["wait_s"], is_tracked=is_tracked)
            stack.callback(self._end)
            self._stop = stack.enter_context(signals_caught())
            self._view = view_for(self._first.config["launch"]["progress"], self._setting.num_jobs)
            stack.callback(self._view.close)
            yield

    def take_back(self) -> None:
        """Leave what was asked before: this is refused."""
        if self._asked_before is not None:
            write_atomic(self.place.definition, self._asked_before)

    def run(self, source: JobSource) -> None:
        """Have jobs run, until there are no more or the sweep is stopped."""
        context = LaunchContext(
            start=start_fresh,
            catching=lambda: nullcontext(self._stop),
            display=lambda _plan: Silent(),
            say=lambda _plan, text: self.say(None, text),
            uploader=self,
            is_one_of_many=True,
        )
        launch = self._first.config["launch"]
        at_once = [n for n in (launch["max_jobs"], self._launcher.capacity(self._first.config)) if n is not None]
        policy = replace(self._setting.policy, max_jobs=min(at_once, default=None), retries=launch["retries"])
        driver = Driver(self._claims, self._machine, context, self, policy, self._spent, self._stop)
        driver.run(source)
        self.why_stopped = driver.why_stopped

    def run_all(self, jobs: Sequence[PlannedJob]) -> list[Outcome]:
        """Have jobs run that are known beforehand; how each ended, in their order."""
        entered = self.entered(jobs)
        self.run(Fixed(entered))
        not_run = Outcome(RunState.NOT_RUN, self.why_stopped, 0)
        return [self.outcomes.get(job.entry.job, not_run) for job in entered]

    def entered(self, jobs: Sequence[PlannedJob]) -> list[Job]:
        """The jobs with their numbers, each with its share of the machine."""
        plans = [
            with_recorded_settings(self._of_this_sweep(self._with_its_share(job.plan), job.overrides)) for job in jobs
        ]
        wanted = [
            LedgerEntry(0, job.overrides, self._base, job.trial, plan.signature, "" if job.problem else plan.run_dir)
            for job, plan in zip(jobs, plans, strict=True)
        ]
        before = {entry.key: entry.signature for entry in self._ledger.entries().values()}
        entries = self._ledger.enter(wanted)
        self._report_changed(sum(before.get(e.key, e.signature) != e.signature for e in entries))
        self.entries.update({entry.job: entry for entry in entries})
        self._axes_of.update({entry.run: ranking.values_of(entry.overrides) for entry in entries})
        warnings = [warning for plan in plans for warning in plan.warnings]
        warnings += [one_by_one(plan, self._setting.num_jobs or 2) for plan in plans]
        for warning in dict.fromkeys(warnings):
            if warning and warning not in self._warned:
                self._warned.add(warning)
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        return [
            Job(entry, plan, job.problem or damage(plan)) for entry, plan, job in zip(entries, plans, jobs, strict=True)
        ]

    def _report_changed(self, number: int) -> None:
        if number:
            jobs = "1 job is" if number == 1 else f"{number} jobs are"
            print(
                f"{jobs} not what they were when they were run: code, data or configuration have changed, so they run "
                "anew (`hpcexp why RUN` says what).",
                flush=True,
            )

    def is_held(self, number: int) -> bool:
        """Whether a driver that lives has the job of that number."""
        return self._claims.holder(str(number)) is not None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is to be started."""
        return bool(self._stop or self.why_stopped)

    @property
    def exit_status(self) -> int:
        """0 when every job finished or the budget was used up, 1 when one failed, 128 + n when signal n stopped it.

        2 when jobs do not record what they are to be ranked by.
        """
        if self._stop and not self.why_stopped:
            return 128 + self._stop[0]
        if self._misses:
            return 2
        return int(any(outcome.state in (RunState.FAILED, RunState.KILLED) for outcome in self.outcomes.values()))

    def results(self) -> list[Result]:
        """Of all jobs that are asked for, in the order of their numbers: of a search those of all its continuations."""
        overrides = self._ledger.entries() if is_open(self.spec) else self.entries
        return [self._result(entry) for _, entry in sorted(overrides.items())]

    def answer(self) -> str:
        """What came of it, for people."""
        gone = 0 if is_open(self.spec) else len(self._ledger.entries().keys() - self.entries.keys())
        said = [ranking.answer(self.place, self.spec, self.results(), self.why_stopped, gone)]
        failed = sum(self.outcomes[number].state is RunState.FAILED for number in self._old)
        if self._is_idle:
            said.insert(0, "nothing to do: every job has been run before (--fresh runs them again).")
        if failed:
            said.append(f"{failed} failed before, not tried again: --retry-failed does.")
        return "\n".join(said)

    # What the driver tells:

    def began(self, job: Job) -> None:
        """A job was started."""
        self._view.began(job)

    def display(self, job: Job) -> Display:
        """What shows a job's progress."""
        return self._view.display(job)

    def say(self, job: Job | None, text: str) -> None:
        """Something of a job, or of the sweep."""
        self._view.say(job, text)

    def ended(self, job: Job, outcome: Outcome, *, is_old: bool) -> None:
        """A job has ended, or need not run."""
        self.outcomes[job.entry.job] = outcome
        if is_old:
            self._old.add(job.entry.job)
        if outcome.state is RunState.SKIPPED and not self._is_delivered(job):
            self.begin(RunDir(Path(job.plan.run_dir)), job.plan)
        if outcome.state is RunState.FINISHED and self._is_ranked is None:
            self._misses = not_recorded(RunDir(Path(job.plan.run_dir)), self.objectives)
            self._is_ranked = not self._misses
        is_over = outcome.state in (RunState.FINISHED, RunState.PRUNED) and not is_old
        values = read_result(job.entry, self.objectives).values if is_over else ()
        self._view.ended(job, outcome, ranking.values_text(values, self.objectives), is_old=is_old)

    def refresh(self, waiting: int, why: str) -> None:
        """Time has passed."""
        self._fleet.tend()
        self._view.refresh(waiting, why)

    # What a job's supervisor tells:

    def begin(self, run: RunDir, plan: Plan) -> None:
        """A run goes off, or belongs to the sweep from before."""
        if has_work(plan):
            self._fleet.add(run, self._axes_of[str(run.path)])

    def end(self, run: RunDir, plan: Plan) -> None:
        """The shipper sees it by itself."""

    def _spent(self, core_s: float, gpu_s: float) -> str:
        """Why nothing more is to be started: the first job cannot be ranked, or the budget is used up."""
        return self._misses or self._meter.spent(core_s, gpu_s)

    def _is_delivered(self, job: Job) -> bool:
        """Whether MLflow has the run already, as one of this sweep."""
        try:
            known = read_delivered(RunDir(Path(job.plan.run_dir)))
        except RunError:
            return False  # which the shipper reports
        sweep = Membership(str(self.place.path), self._axes_of[job.entry.run])
        return job.plan.tracking_uri is None or (known.delivered and known.sweep == sweep)

    @property
    def _is_idle(self) -> bool:
        """Whether all that was asked for had been run before."""
        return bool(self._old) and len(self._old) == len(self.outcomes) and not self.is_stopped

    @cached_property
    def _launcher(self) -> Launcher:
        return launcher_of(self._first.config)

    @cached_property
    def _machine(self) -> Machine:
        """What the jobs share."""
        return self._launcher.machine(self._first.config)

    def _with_its_share(self, plan: Plan) -> Plan:
        machine = self._machine
        threads = threads_for_many(plan, machine, self._setting.num_jobs or machine.num_cores)
        return replace(plan, topology=replace(plan.topology, threads_per_rank=threads))

    def _of_this_sweep(self, plan: Plan, overrides: Sequence[str]) -> Plan:
        """The plan, which knows the sweep it is a job of, and what that asks of it alone."""
        return replace(plan, job_of=JobOf(str(self.place.path), tuple(map(masked_override, overrides))))

    def _begin(self, edits: Sequence[str]) -> None:
        """Say who else is at it and what was edited, and that the sweep is at work."""
        if others := self._claims.others():
            print(f"Working together with {', '.join(map(str, others))}: no job is run twice.", flush=True)
        if edits:
            print("\n".join(["The sweep was edited:", *(f"  {edit}" for edit in edits)]), flush=True)
        self._before = self._status_before(Status())
        now = started_now()
        self._status = Status(
            state=RunState.RUNNING,
            begun=self._before.begun or now["started"],
            ended=self._before.ended,
            cause=self._before.cause,
            **now,
            **Owner.this().facts(),
        )
        write(self.place.status, self._status)

    def _status_before(self, otherwise: Status) -> Status:
        """The sweep's status; `otherwise` where its file is damaged, as this driver writes it anew."""
        try:
            return read_status(self.place)
        except UnusableFileError as e:
            print(f"{str(e).partition(chr(10))[0]} It is written anew.", file=sys.stderr, flush=True)
            return otherwise

    def _end(self) -> None:
        """Leave the answer in the directory, and the sweep's state where no other driver goes on with it."""
        results = self.results()
        self._meter.write()
        points, axes = ranked(results, self.objectives), ranking.columns(self.spec)
        write_atomic(self.place.table_csv, ranking.as_csv(results, axes, self.objectives))
        write_atomic(self.place.table_md, ranking.as_markdown(points, axes, self.objectives))
        if best := ranking.best(points, self.objectives):
            write(self.place.best, best)
        self._claims.close()  # before the look at others: of two that end at once, one must see that it is the last
        if self._claims.others():
            return
        if self._is_idle and self._before.state.is_final:
            write(self.place.status, self._before)
            return
        states = {outcome.state for outcome in self.outcomes.values()}
        has_failed = bool(states & {RunState.FAILED, RunState.KILLED} or self._misses)
        is_stopped = self._stop and self.why_stopped != FAILED_FAST
        state = RunState.KILLED if is_stopped else RunState.FAILED if has_failed else RunState.FINISHED
        status = self._status_before(self._status)
        # Otherwise it is of a driver that came later and ended earlier.
        is_own = status.token == self._status.token
        ended = ended_now(status.started_boot_s if is_own else None)
        write(self.place.status, replace_fields(status, state=state, cause=self.why_stopped, **ended))

    def _result(self, entry: LedgerEntry) -> Result:
        """From its directory; what this command knows better comes first."""
        outcome = self.outcomes.get(entry.job)
        if outcome is None and entry.job in self.entries:
            return replace(read_result(entry, ()), state=RunState.NOT_RUN)
        if outcome is None:  # of another driver, or of before
            return read_result(entry, self.objectives)
        if outcome.state is RunState.FAILED:
            return replace(read_result(entry, self.objectives), state=RunState.FAILED, cause=outcome.cause)
        return read_result(entry, self.objectives)
