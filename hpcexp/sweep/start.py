"""A sweep of a file, from what it asks to its answer."""

from __future__ import annotations

from collections.abc import Sequence

from hpcexp.compose.composer import Composer
from hpcexp.compose.many import Many
from hpcexp.plan import Plan
from hpcexp.sweep.driver import Policy
from hpcexp.sweep.planning import check_in_worker, planned_all
from hpcexp.sweep.session import Asked, Session, Setting
from hpcexp.sweep.spec import Spec, asked_by


def run_sweep(composer: Composer, spec: Spec, command: Sequence[str], policy: Policy) -> int:
    """Exit status: 0 when every job finished, 1 when one failed, 128 + n when signal n stopped the sweep."""
    jobs = asked_by(spec)
    plans = planned_jobs(composer, spec, command)
    check_in_worker(plans, jobs)
    session = Session(spec, Setting(composer.project, " ".join(command), policy, len(jobs)), plans[0])
    with session.opened():
        session.run_all([Asked(job, plan) for job, plan in zip(jobs, plans, strict=True)])
    print(f"\n{session.answer()}", flush=True)
    return session.exit_status


def planned_jobs(composer: Composer, spec: Spec, command: Sequence[str]) -> list[Plan]:
    """The plans of all jobs of a sweep without a search."""
    overrides = [[*spec.base, *job] for job in asked_by(spec)]
    return planned_all(Many(composer), overrides, composer.project, command)
