"""Running a sweep from its definition to its answer."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpcexp.compose.composer import Composer
from hpcexp.compose.many import Many
from hpcexp.errors import ConfigError, HpcexpError, RunError, did_you_mean, listed
from hpcexp.plan import Plan
from hpcexp.redaction import masked_command
from hpcexp.sweep.engine.job_entries import PlannedJob, Setting
from hpcexp.sweep.engine.planning import check_in_worker, planned_all
from hpcexp.sweep.engine.policy import Policy
from hpcexp.sweep.engine.session import Session
from hpcexp.sweep.spec.axes import hydra_overrides
from hpcexp.sweep.spec.search_problems import unfit
from hpcexp.sweep.spec.spec import Axis, Choices, Objective, Spec, combinations, repeats
from hpcexp.sweep.spec.stages import resolved, without_best
from hpcexp.sweep.spec.typed import quoted
from hpcexp.sweep.spec.values import typed_value
from hpcexp.sweep.store.directory import best_run, sweep_dir

SETTLE_S = 10.0
"""How long to wait for a study's storage at the end."""


def run_sweep(
    composer: Composer,
    spec: Spec,
    command: Sequence[str],
    policy: Policy,
    of_command: DictConfig | None = None,
    in_words: Callable[[str], str] = str,
) -> int:
    """Exit status: 0 when every job finished, 1 when one failed, 128 + n when signal n stopped the sweep.

    `of_command`: the command line composed for a multirun; None for a sweep in a file. `in_words`: rewords a problem
    for the caller.
    """
    plans = planned_jobs(composer, spec, command, of_command, in_words)
    spec = directed(spec, plans[0])
    overrides = job_overrides(spec)
    check_in_worker(plans, overrides)
    setting = Setting(composer.project, masked_command(command), policy, None if spec.search else len(plans))
    session = Session(spec, setting, plans[0])
    with session.opened():
        if spec.search is None:
            session.run_all([PlannedJob(job, plan) for job, plan in zip(overrides, plans, strict=True)])
        else:
            _search(_many(composer, of_command), session, plans[0], command)
    print(f"\n{session.answer()}", flush=True)
    return session.exit_status


def run_stages(
    composer: Composer, stages: Mapping[str, Spec], command: Sequence[str], policy_of: Callable[[Spec], Policy]
) -> int:
    """Run the sweeps of a file one after the other; exit status as of `run_sweep`, of the first that is not 0.

    All are checked before the first starts, except for the settings that name the best run of a stage.
    """
    if len(stages) == 1:
        [spec] = stages.values()
        return run_sweep(composer, spec, command, policy_of(spec))
    plans = planned_stages(composer, stages, command)
    directories = {stage: sweep_dir(composer.project, jobs[0], stages[stage].name) for stage, jobs in plans.items()}

    def best_of(stage: str) -> str:
        run = best_run(directories[stage])
        if run is None:
            raise RunError(
                f"Stage {stage} has no best run: no job of it finished with a value of its metric.\n"
                f"Fix: `hpcexp sweep {directories[stage].path.name} --status` shows its jobs."
            )
        return quoted(str(run))

    for number, (stage, spec) in enumerate(stages.items(), 1):
        print(f"Stage {number} of {len(stages)}: {stage}", flush=True)
        status = run_sweep(composer, resolved(spec, best_of), command, policy_of(spec))
        is_stopped = status or directories[stage].cancel.exists()
        if is_stopped and number < len(stages):
            print(f"Stage {stage} did not finish, so the next does not start.", file=sys.stderr, flush=True)
        if is_stopped:
            return status
    return 0


def planned_stages(composer: Composer, stages: Mapping[str, Spec], command: Sequence[str]) -> dict[str, list[Plan]]:
    """The plans of each stage's jobs, without the settings that name the best run of a stage.

    ConfigError with the problems of all stages.
    """
    plans, problems = {}, []
    for stage, spec in stages.items():
        try:
            plans[stage] = planned_jobs(composer, without_best(spec), command)
        except ConfigError as e:
            problems += [f"Stage {stage}: {problem}" for problem in e.problems]
    if problems:
        raise ConfigError(problems)
    return plans


def planned_jobs(
    composer: Composer,
    spec: Spec,
    command: Sequence[str],
    of_command: DictConfig | None = None,
    in_words: Callable[[str], str] = str,
) -> list[Plan]:
    """The plans of all jobs, or of those at the ends of a search's space. ConfigError with every problem."""
    plans = planned_all(
        _many(composer, of_command), [[*spec.base, *job] for job in job_overrides(spec)], composer.project, command
    )
    first = plans[0].settings.trainer
    spec = directed(spec, plans[0])
    objectives = spec.objectives or (Objective(first.monitor, str(first.mode)),)
    problems = [*unfit(spec, objectives, first.max_epochs), *_unknown_metrics(objectives, plans[0])]
    if problems:
        raise ConfigError(list(map(in_words, problems)))
    return plans


def directed(spec: Spec, plan: Plan) -> Spec:
    """The spec with the directions of its metrics, where the task says them; ConfigError where nobody does."""
    trainer = plan.settings.trainer
    known: dict[str, Any] = {**(plan.metrics or {}), trainer.monitor: trainer.mode}
    directed = tuple(replace(o, mode=o.mode or known.get(o.metric) or "") for o in spec.objectives)
    if unclear := [o for o in directed if not o.mode]:
        raise ConfigError(
            _unknown_metrics(unclear, plan)
            or [
                f"metric={o.metric}: nobody says which direction is better.\nFix: mode=max, or mode=min"
                for o in unclear
            ]
        )
    return replace(spec, objectives=directed)


def _many(composer: Composer, of_command: DictConfig | None) -> Many:
    return Many(composer, hydra_overrides(of_command) if of_command is not None else (), of_command)


def job_overrides(spec: Spec) -> list[tuple[str, ...]]:
    """Overrides of each job besides the base; of a search, points that cover every end and every choice."""
    if spec.search is None:
        return combinations(spec)
    ends = {key: _ends(axis) for key, axis in spec.axes.items()}
    points = itertools.zip_longest(*ends.values())
    return [
        tuple(f"{key}={value if value is not None else ends[key][0]}" for key, value in zip(ends, point, strict=True))
        for point in points
    ]


def _ends(axis: Axis) -> tuple[str, ...]:
    if isinstance(axis, Choices):
        return axis.values
    kind = int if axis.is_int else float
    return typed_value(kind(axis.low)), typed_value(kind(axis.high))


def _search(many: Many, session: Session, first: Plan, command: Sequence[str]) -> None:
    """`many`: one for all trials, so that a file that is edited meanwhile changes none."""
    from hpcexp.sweep.search.plots import draw_study
    from hpcexp.sweep.search.study import Study
    from hpcexp.sweep.search.trial_source import TrialSource

    spec, project = session.spec, Path(first.lineage["project"])

    def planned(overrides: tuple[str, ...]) -> Plan:
        [plan] = planned_all(many, [[*spec.base, *overrides]], project, command)
        return plan

    max_epochs = first.settings.trainer.max_epochs
    try:
        study = Study(spec, session.objectives, session.directory.path, project=project, max_epochs=max_epochs)
    except HpcexpError:
        session.take_back()
        raise
    try:
        session.run(TrialSource(study, session, planned, first, repeats(spec)))
        if (problem := study.settle(SETTLE_S)) is not None:
            session.outcomes.say(None, f"The study lacks results, which it gets when the sweep resumes: {problem}")
        try:
            draw_study(study, session.directory.plots)
        except Exception as e:  # noqa: BLE001 - a picture is worth no search
            session.outcomes.say(None, f"The study's pictures could not be drawn: {type(e).__name__}: {e}")
    finally:
        study.close()


def _unknown_metrics(objectives: Sequence[Objective], plan: Plan) -> list[str]:
    """Metrics that the task does not record; what a user's LightningModule logs is unknown here."""
    if plan.metrics is None:
        return []
    known = [*plan.metrics, "num_params", "durations.fit_s", "durations.until_first_step_s", "steps", "epochs"]
    return [
        f"metric={o.metric}: this experiment does not record it.\n"
        f"Fix: {did_you_mean(o.metric, known)}It records {listed(known)}; task.metrics adds more."
        for o in objectives
        if o.metric not in known
    ]
