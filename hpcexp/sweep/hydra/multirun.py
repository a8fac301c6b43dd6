"""`-m`: every combination of the command line's values, or what a sweeper of Hydra's asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from hpcexp.compose.composer import Composer, CompositionError, as_given
from hpcexp.compose.failures import FAILURES
from hpcexp.compose.many import Many
from hpcexp.errors import ConfigError
from hpcexp.launch.base.outcome import Outcome
from hpcexp.plan import Plan
from hpcexp.redaction import masked_command
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.sweep.engine.job_entries import PlannedJob, Setting
from hpcexp.sweep.engine.planning import check_in_worker, planned_all
from hpcexp.sweep.engine.policy import Policy
from hpcexp.sweep.engine.session import Session
from hpcexp.sweep.hydra.launcher import CollectingLauncher, PlanLauncher
from hpcexp.sweep.hydra.optuna_sweeper import as_typed, is_searched, spec_of, sweeper_of
from hpcexp.sweep.hydra.plugin_launchers import StockLauncher, check_installed
from hpcexp.sweep.hydra.task import HydraTask, MultirunStopped, best_value
from hpcexp.sweep.spec.axes import (
    counting,
    hydra_overrides,
    job_overrides,
    jobs_of,
    params_of,
    runs_through_all,
    task_overrides,
)
from hpcexp.sweep.spec.spec import Choices, Spec
from hpcexp.sweep.start import planned_jobs, run_sweep
from hpcexp.sweep.store.directory import sweep_name, sweeps_dir
from hpcexp.targets.literals import escaped


def multirun(composer: Composer, overrides: list[str], command: list[str], policy: Policy) -> int:
    """Exit status: 0 when every job finished, 1 when one failed, 128 + n when signal n stopped the sweep."""
    check_installed(overrides)
    cfg = composer.load(overrides, RunMode.MULTIRUN)
    composer.check_multirun(cfg)
    if is_searched(cfg) and _is_ours(cfg):
        spec = _searched(composer, cfg)
        policy = replace(policy, is_fail_fast=policy.is_fail_fast or spec.is_fail_fast)
        with _multirun_callbacks(composer, cfg):
            return run_sweep(composer, spec, command, policy, cfg, as_typed)
    if not (runs_through_all(cfg) and _is_ours(cfg)):
        return _by_hydra(composer, overrides, cfg, command, policy)
    spec, jobs = combinations(composer, cfg)
    plans = _planned(composer, overrides, cfg, jobs, command)
    job_overrides = [_on_axes(job, spec) for job in jobs]
    check_in_worker(plans, job_overrides)
    session = Session(spec, Setting(composer.project, masked_command(command), policy, len(jobs)), plans[0])
    with _multirun_callbacks(composer, cfg), session.opened():
        session.run_all([PlannedJob(job, plan) for job, plan in zip(job_overrides, plans, strict=True)])
    print(f"\n{session.answer()}", flush=True)
    return session.exit_status


def planned(composer: Composer, overrides: list[str], command: list[str]) -> list[Plan]:
    """The plans of every combination of `overrides`, none of them started."""
    cfg = composer.load(overrides, RunMode.MULTIRUN)
    composer.check_multirun(cfg)
    if runs_through_all(cfg):
        _, jobs = combinations(composer, cfg)
        return _planned(composer, overrides, cfg, jobs, command)
    if is_searched(cfg):
        return planned_jobs(composer, _searched(composer, cfg), command, cfg, as_typed)
    many = Many(composer, hydra_overrides(cfg), cfg)
    collecting = CollectingLauncher(lambda jobs: planned_all(many, jobs, composer.project, command))
    with TemporaryDirectory() as nowhere:
        _sweep(
            composer, overrides, HydraTask(composer.project, command, fresh=False), lambda _stock: collecting, nowhere
        )
    return collecting.plans


def _searched(composer: Composer, cfg: DictConfig) -> Spec:
    return spec_of(cfg, composer.repaired(task_overrides(cfg)), composer.loader)


def combinations(composer: Composer, cfg: DictConfig) -> tuple[Spec, list[list[str]]]:
    """What the command line asks, and the overrides of every job."""
    given = counting(_parsed(composer, composer.with_texts([*params_of(cfg), *task_overrides(cfg)])))
    axes = {o.key_or_group: Choices(tuple(o.sweep_string_iterator())) for o in given if o.is_discrete_sweep()}
    base = tuple(as_given(str(o.input_line)) for o in given if not o.is_sweep_override())
    jobs = job_overrides(composer, cfg)
    words = [axis.rpartition(".")[2] for axis in axes]
    name = sweep_name(str(cfg.name), words, [*(str(o.input_line) for o in given), composer.config_name])
    return Spec(name, str(cfg.get("notes") or ""), base, axes), jobs


def _parsed(composer: Composer, overrides: list[str]) -> list[Override]:
    return OverridesParser.create(composer.loader).parse_overrides(overrides)


def _planned(
    composer: Composer, overrides: list[str], cfg: DictConfig, jobs: list[list[str]], command: list[str]
) -> list[Plan]:
    try:
        return planned_all(Many(composer, hydra_overrides(cfg), cfg), jobs, composer.project, command)
    except CompositionError as e:
        raise composer.diagnosis(overrides, RunMode.MULTIRUN, e) from e


def _on_axes(job: Sequence[str], spec: Spec) -> tuple[str, ...]:
    """The overrides of a job that belong to an axis."""
    return tuple(o.lstrip("+") for o in job if o.lstrip("+").partition("=")[0].partition("@")[0] in spec.axes)


def _is_ours(cfg: DictConfig) -> bool:
    """Whether no launcher of Hydra's was asked for."""
    return bool(cfg.hydra.launcher._target_.endswith(f".{BasicLauncher.__name__}"))


def _by_hydra(composer: Composer, overrides: list[str], cfg: DictConfig, command: list[str], policy: Policy) -> int:
    """A sweeper of Hydra's asks for jobs, or a launcher of Hydra's runs them."""
    task = HydraTask(composer.project, command, policy.fresh)
    launchers: list[PlanLauncher] = []
    many = Many(composer, hydra_overrides(cfg), cfg)

    def plans(jobs: Sequence[Sequence[str]]) -> list[Plan]:
        return planned_all(many, jobs, composer.project, command)

    def launcher(stock: Any) -> Launcher:
        if not isinstance(stock, BasicLauncher):
            return StockLauncher(stock, plans)
        setting = Setting(composer.project, masked_command(command), policy, None)
        spec = Spec(sweep_name("hydra", [], overrides), "", tuple(overrides), {})
        launchers.append(PlanLauncher(plans, lambda first: Session(spec, setting, first)))
        return launchers[0]

    status = 0
    try:
        _sweep(composer, overrides, task, launcher)
    except MultirunStopped as e:
        status = e.exit_status
    finally:
        for ours in launchers:
            ours.close()
    for session in [ours.session for ours in launchers if ours.session]:
        print(f"\n{session.answer()}", flush=True)
        return status or session.exit_status
    print("\n".join(["", *(_line(plan, outcome) for plan, outcome in task.done)]))
    return status or int(any(outcome.state in (RunState.FAILED, RunState.KILLED) for _, outcome in task.done))


def _sweep(
    composer: Composer, overrides: list[str], task: HydraTask, launcher: Any, sweep_dir: Path | str | None = None
) -> None:
    """Hydra's `multirun`, with hpcexp's launcher instead of its basic one and around others."""
    cfg = composer.load(overrides, RunMode.MULTIRUN)
    place = sweep_dir or sweeps_dir(composer.project / cfg.run.root) / ".hydra" / time.strftime("%Y%m%d-%H%M%S")
    directory = QuotedString(escaped(str(place)), Quote.single).with_quotes()
    hydras = [f"hydra.sweep.dir={directory}", "hydra.sweep.subdir=${hydra.job.num}", "hydra.mode=MULTIRUN"]
    cfg = composer.load([*hydras, *overrides], RunMode.MULTIRUN)
    with _multirun_callbacks(composer, cfg) as callbacks:
        context = HydraContext(config_loader=composer.loader, callbacks=callbacks)
        made = sweeper_of if is_searched(cfg) else _instantiated
        sweeper: Any = made(cfg, context, task)
        sweeper.launcher = launcher(sweeper.launcher)
        arguments = composer.repaired(task_overrides(cfg))
        if isinstance(sweeper, BasicSweeper):
            setattr(sweeper, "split_arguments", _batches)  # noqa: B010 - of this sweeper only
        elif not is_searched(cfg):
            _check_repeated(_parsed(composer, arguments), type(sweeper).__name__)
        sweeper.launcher.setup(hydra_context=context, task_function=task, config=cfg)
        try:
            sweeper.sweep(arguments=arguments)
        except (*FAILURES, CompositionError) as e:
            raise composer.diagnosis(overrides, RunMode.MULTIRUN, e) from e


def _batches(overrides: list[Override], most: int | None) -> list[list[list[str]]]:
    """The jobs of Hydra's own sweeper, which itself keeps only the last of several mappings for a key."""
    jobs = jobs_of(overrides)
    size = most or max(1, len(jobs))
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def _check_repeated(overrides: list[Override], sweeper: str) -> None:
    """ConfigError where a key is given twice, as sweepers pass on only the last."""
    lines: dict[str, list[str]] = {}
    for override in overrides:
        lines.setdefault(override.get_key_element(), []).append(as_given(str(override.input_line)))
    if twice := [given for given in lines.values() if len(given) > 1]:
        raise ConfigError(
            [f"{' '.join(given)}: {sweeper} passes on only the last of these.\nFix: give one." for given in twice]
        )


def _instantiated(cfg: DictConfig, context: HydraContext, task: HydraTask) -> Sweeper:
    return Plugins.instance().instantiate_sweeper(config=cfg, hydra_context=context, task_function=task)


@contextmanager
def _multirun_callbacks(composer: Composer, cfg: DictConfig) -> Iterator[Callbacks]:
    """Hydra's callbacks, called at the start and the end of a multirun."""
    callbacks = Callbacks(cfg)
    callbacks.on_multirun_start(config=cfg, config_name=composer.config_name)
    try:
        yield callbacks
    finally:
        callbacks.on_multirun_end(config=cfg, config_name=composer.config_name)


def _line(plan: Plan, outcome: Outcome) -> str:
    value = best_value(plan)
    monitor = plan.settings.trainer.monitor
    result = f"{monitor} {value:.4g}" if value is not None else outcome.cause.partition("\n")[0]
    return f"{outcome.state:<9} {plan.experiment}/{RunDir(Path(plan.run_dir)).path.name}  {result}"
