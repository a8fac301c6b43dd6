"""Planning all jobs of a sweep before the first starts, with the mistakes of all reported together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcexp.compose.composer import CompositionError
from hpcexp.compose.many import Many
from hpcexp.errors import ConfigError
from hpcexp.launch.base.launcher import launcher_of
from hpcexp.memo import Once
from hpcexp.plan import Plan, whole
from hpcexp.planner import prepare
from hpcexp.status.state import damage, is_done
from hpcexp.train.tasks.planning import checkable

NAMED = 3
"""Jobs that are named where a mistake is in more than one of them."""


def planned_all(many: Many, jobs: Sequence[Sequence[str]], project: Path, command: Sequence[str]) -> list[Plan]:
    """The plans of jobs that are given by their overrides; ConfigError with the mistakes of all.

    What they have in common is looked up once, and anew the next time that jobs are planned. CompositionError at the
    first that does not compose: others would not for the same reason.
    """
    plans: list[Plan] = []
    wrong: dict[str, list[Sequence[str]]] = {}
    once = Once()
    for overrides in jobs:
        composed = many.compose(overrides)
        if composed.problems:
            raise CompositionError(
                [_problem_text(problem, [overrides], len(jobs)) for problem in composed.problems], None
            )
        try:
            plans.append(prepare(composed, project, command, once=once))
        except ConfigError as e:
            for problem in e.problems:
                wrong.setdefault(problem, []).append(overrides)
    if wrong:
        raise ConfigError([_problem_text(problem, where, len(jobs)) for problem, where in wrong.items()])
    return plans


def check_in_worker(plans: Sequence[Plan], overrides: Sequence[Sequence[str]]) -> None:
    """Hold the targets of all jobs that are to run against the real signatures; ConfigError with what does not fit.

    Where ranks are fresh processes, each of them does it.
    """
    chosen = [i for i, plan in enumerate(plans) if _starts_warm(plan) and not damage(plan) and not is_done(plan)]
    if not chosen:
        return
    from hpcexp.launch.supervisor.forkserver import target_problems

    found = target_problems([checkable(whole(plans[i])) for i in chosen], Path(plans[0].lineage["project"]))
    wrong: dict[str, list[Sequence[str]]] = {}
    for i, problems in zip(chosen, found, strict=True):
        for problem in problems:
            wrong.setdefault(problem, []).append(overrides[i])
    if wrong:
        raise ConfigError([_problem_text(problem, where, len(plans)) for problem, where in wrong.items()])


def _starts_warm(plan: Plan) -> bool:
    return launcher_of(plan.settings).is_here and plan.settings.launch.isolation != "process"


def _problem_text(problem: str, where: Sequence[Sequence[str]], num_jobs: int) -> str:
    if len(where) == num_jobs and num_jobs > 1:
        return f"in all {num_jobs} jobs:\n{problem}"
    named = "; ".join(" ".join(override.lstrip("+") for override in overrides) for overrides in where[:NAMED])
    more = f" and {len(where) - NAMED} more jobs" if len(where) > NAMED else ""
    return f"{named}{more}\n{problem}"
