"""The jobs of a sweep that a command works on: planned, numbered by the ledger, each with its share of the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hpcexp.hardware.machine import Machine
from hpcexp.launch.base.launcher import Launcher, launcher_of
from hpcexp.launch.resume.interrupted import with_recorded_settings
from hpcexp.plan import JobOf, Plan
from hpcexp.redaction import masked_override
from hpcexp.rundir import SweepDir
from hpcexp.status.state import damage
from hpcexp.sweep.engine.policy import Policy
from hpcexp.sweep.engine.scheduler import one_by_one, threads_for_many
from hpcexp.sweep.report.ranking import values_of
from hpcexp.sweep.spec.spec import Spec, is_open
from hpcexp.sweep.store.jobs import Job
from hpcexp.sweep.store.ledger import Ledger, LedgerEntry


@dataclass(frozen=True)
class PlannedJob:
    """A planned job before it has a number."""

    overrides: tuple[str, ...]
    """The overrides that distinguish it from the sweep's other jobs."""
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
    """Jobs of the whole sweep, which share the machine; None: as many as the machine can run at once."""


class JobEntries:
    """Enters jobs in the ledger."""

    def __init__(self, spec: Spec, setting: Setting, first: Plan, directory: SweepDir, ledger: Ledger) -> None:
        self.entered: dict[int, LedgerEntry] = {}
        """By number: the jobs of this command."""
        self.axes_of: dict[str, dict[str, str]] = {}
        """By run directory: the job's value on each axis."""
        self._spec, self._setting, self._first = spec, setting, first
        self._directory, self._ledger = directory, ledger
        self._base = tuple(map(masked_override, spec.base))
        self._warned: set[str] = set()

    @cached_property
    def launcher(self) -> Launcher:
        """The launcher of all jobs."""
        return launcher_of(self._first.settings)

    @cached_property
    def machine(self) -> Machine:
        """The machine that the jobs share."""
        return self.launcher.machine(self._first.settings)

    def enter(self, jobs: Sequence[PlannedJob]) -> list[Job]:
        """The jobs with their numbers, each with its share of the machine."""
        plans = [with_recorded_settings(self._of_this_sweep(self._with_its_share(job.plan), job)) for job in jobs]
        wanted = [
            LedgerEntry(0, job.overrides, self._base, job.trial, plan.signature, "" if job.problem else plan.run_dir)
            for job, plan in zip(jobs, plans, strict=True)
        ]
        before = {entry.key: entry.signature for entry in self._ledger.entries().values()}
        entries = self._ledger.enter(wanted)
        _report_changed(sum(before.get(e.key, e.signature) != e.signature for e in entries))
        self.entered.update({entry.job: entry for entry in entries})
        self.axes_of.update({entry.run: values_of(entry.overrides) for entry in entries})
        self._warn(plans)
        return [
            Job(entry, plan, job.problem or damage(plan)) for entry, plan, job in zip(entries, plans, jobs, strict=True)
        ]

    def wanted(self) -> list[LedgerEntry]:
        """The sweep's jobs in the order of their numbers; of a search those of all commands."""
        entries = self._ledger.entries() if is_open(self._spec) else self.entered
        return [entry for _, entry in sorted(entries.items())]

    def num_dropped(self) -> int:
        """Jobs in the ledger that the edited sweep no longer has."""
        return 0 if is_open(self._spec) else len(self._ledger.entries().keys() - self.entered.keys())

    def _with_its_share(self, plan: Plan) -> Plan:
        threads = threads_for_many(plan, self.machine, self._setting.num_jobs or self.machine.num_cores)
        return replace(plan, topology=replace(plan.topology, threads_per_rank=threads))

    def _of_this_sweep(self, plan: Plan, job: PlannedJob) -> Plan:
        """The plan, which names the sweep and the job's own overrides."""
        return replace(plan, job_of=JobOf(str(self._directory.path), tuple(map(masked_override, job.overrides))))

    def _warn(self, plans: Sequence[Plan]) -> None:
        warnings = [warning for plan in plans for warning in plan.warnings]
        warnings += [one_by_one(plan, self._setting.num_jobs or 2) for plan in plans]
        for warning in dict.fromkeys(warnings):
            if warning and warning not in self._warned:
                self._warned.add(warning)
                print(f"warning: {warning}", file=sys.stderr, flush=True)


def _report_changed(number: int) -> None:
    if number:
        jobs = "1 job has" if number == 1 else f"{number} jobs have"
        print(
            f"{jobs} changed since the last run (code, data or configuration) and will run again "
            "(`hpcexp why RUN` shows what changed).",
            flush=True,
        )
