"""One command's work on a sweep: from planned jobs to the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

from hpcexp.files.atomic import write_atomic
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import Silent
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import signals_caught
from hpcexp.launch.base.rank_process import start_fresh
from hpcexp.plan import Plan
from hpcexp.runs.records.files import write
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.engine.driver import FAILED_FAST, Driver
from hpcexp.sweep.engine.job_entries import JobEntries, PlannedJob, Setting
from hpcexp.sweep.engine.job_outcomes import JobOutcomes
from hpcexp.sweep.engine.job_uploads import JobUploads
from hpcexp.sweep.engine.sweep_state import SweepState
from hpcexp.sweep.report import ranking
from hpcexp.sweep.report.live_view import view_for
from hpcexp.sweep.spec.spec import Objective, Spec
from hpcexp.sweep.store.budget import Meter
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.directory import ask, sweep_dir
from hpcexp.sweep.store.jobs import Fixed, JobSource
from hpcexp.sweep.store.ledger import Ledger
from hpcexp.sweep.store.results import Result, ranked


class Session:
    """A sweep at work in this process. Its jobs come all at once, or a few at a time."""

    jobs: JobEntries
    outcomes: JobOutcomes

    def __init__(self, spec: Spec, setting: Setting, first: Plan) -> None:
        """`first`: the plan of any of its jobs, for what all have in common."""
        monitored = Objective(first.settings.trainer.monitor, str(first.settings.trainer.mode))
        self.objectives = spec.objectives or (monitored,)
        self.spec = replace(spec, objectives=self.objectives)
        self.directory = sweep_dir(setting.project, first, spec.name)
        self.why_stopped = ""
        self._setting, self._first = setting, first
        self._stop: list[int] = []

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the sweep's directory, this driver's claims, its uploader and its signals while it works."""
        self._definition_before = (
            self.directory.definition.read_bytes() if self.directory.definition.is_file() else None
        )
        edits = ask(self.directory, self.spec, self._setting.project, self._setting.command)
        self.directory.cancel.unlink(missing_ok=True)
        settings = self._first.settings
        self._claims = Claims(self.directory.path, timeout_s=settings.launch.beat_timeout_s)
        ledger = Ledger(self.directory.path, self._claims)
        self._meter = Meter(self.directory.path, self._claims.token, self.spec.budget)
        self.jobs = JobEntries(self.spec, self._setting, self._first, self.directory, ledger)
        self._uploads = JobUploads(self.directory, self.jobs.axes_of)
        with ExitStack() as stack:
            self._claims.open()
            stack.callback(self._claims.close)
            self._announce(edits)
            self._state = SweepState(self.directory)
            view = view_for(settings.launch.progress, self._setting.num_jobs)
            self.outcomes = JobOutcomes(self.objectives, self.jobs, self._uploads, view)
            is_tracked = self._first.tracking_uri is not None
            stack.callback(self._uploads.close, settings.tracking.wait_s, is_tracked=is_tracked)
            stack.callback(self._end)
            self._stop = stack.enter_context(signals_caught())
            stack.callback(view.close)
            yield

    def take_back(self) -> None:
        """Restore the definition of the sweep from before: the new one is refused."""
        if self._definition_before is not None:
            write_atomic(self.directory.definition, self._definition_before)

    def run(self, source: JobSource) -> None:
        """Run jobs until there are no more or the sweep is stopped."""
        context = LaunchContext(
            start=start_fresh,
            catching=lambda: nullcontext(self._stop),
            display=lambda _plan: Silent(),
            say=lambda _plan, text: self.outcomes.say(None, text),
            uploader=self._uploads,
            is_one_of_many=True,
        )
        settings = self._first.settings
        limits = settings.launch.max_jobs, self.jobs.launcher.capacity(settings)
        at_once = [limit for limit in limits if limit is not None]
        policy = replace(self._setting.policy, max_jobs=min(at_once, default=None), retries=settings.launch.retries)
        driver = Driver(self._claims, self.jobs.machine, context, self.outcomes, policy, self._spent, self._stop)
        driver.run(source)
        self.why_stopped = driver.why_stopped

    def run_all(self, jobs: Sequence[PlannedJob]) -> list[Outcome]:
        """Run jobs that are known beforehand; how each ended, in their order."""
        entered = self.jobs.enter(jobs)
        self.run(Fixed(entered))
        not_run = Outcome(RunState.NOT_RUN, self.why_stopped, 0)
        return [self.outcomes.by_number.get(job.entry.job, not_run) for job in entered]

    def is_held(self, number: int) -> bool:
        """Whether a live driver has the job of that number."""
        return self._claims.holder(str(number)) is not None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is started."""
        return bool(self._stop or self.why_stopped)

    @property
    def exit_status(self) -> int:
        """0 when every job finished or the budget was used up, 1 when one failed, 128 + n when signal n stopped it.

        2 when jobs do not record what they are ranked by.
        """
        if self._stop and not self.why_stopped:
            return 128 + self._stop[0]
        return 2 if self.outcomes.misses else int(self.outcomes.has_failed)

    def results(self) -> list[Result]:
        """Results of all jobs that the sweep consists of now."""
        return self.outcomes.results(self.jobs.wanted())

    def answer(self) -> str:
        """The sweep's result, for people."""
        text = ranking.answer(self.directory, self.spec, self.results(), self.why_stopped, self.jobs.num_dropped())
        idle = "nothing to do: every job has been run before (--fresh runs them again)." if self._is_idle else ""
        failed = self.outcomes.num_failed_before()
        retry = f"{failed} failed before, not tried again: --retry-failed does." if failed else ""
        return "\n".join(filter(None, [idle, text, retry]))

    def _spent(self, core_s: float, gpu_s: float) -> str:
        """Why nothing more is started: the first job cannot be ranked, or the budget is used up."""
        return self.outcomes.misses or self._meter.spent(core_s, gpu_s)

    @property
    def _is_idle(self) -> bool:
        """Whether all jobs had been run before."""
        return self.outcomes.is_idle and not self.is_stopped

    def _announce(self, edits: Sequence[str]) -> None:
        """Name the sweep's other drivers and what was edited."""
        if others := self._claims.others():
            print(f"Working together with {', '.join(map(str, others))}: no job is run twice.", flush=True)
        if edits:
            print("\n".join(["The sweep was edited:", *(f"  {edit}" for edit in edits)]), flush=True)

    def _end(self) -> None:
        """Write the results into the directory, and the sweep's state unless another driver works on."""
        results = self.results()
        self._meter.write()
        points, axes = ranked(results, self.objectives), ranking.columns(self.spec)
        write_atomic(self.directory.table_csv, ranking.as_csv(results, axes, self.objectives))
        write_atomic(self.directory.table_md, ranking.as_markdown(points, axes, self.objectives))
        if best := ranking.best(points, self.objectives):
            write(self.directory.best, best)
        self._claims.close()  # before the look at others: of two that end at once, one must see that it is the last
        if self._claims.others():
            return
        has_failed = self.outcomes.has_failed or bool(self.outcomes.misses)
        is_stopped = self._stop and self.why_stopped != FAILED_FAST
        state = RunState.KILLED if is_stopped else RunState.FAILED if has_failed else RunState.FINISHED
        self._state.end(state, self.why_stopped, is_idle=self._is_idle)
