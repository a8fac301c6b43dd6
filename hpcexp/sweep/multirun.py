"""`-m`: every combination of the command line's values, by Hydra's sweepers and launchers."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from hpcexp.compose.composer import Composer, CompositionError
from hpcexp.compose.failures import FAILURES
from hpcexp.compose.many import Many
from hpcexp.launch.watch import Outcome
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.sweep.axes import hydra_overrides, job_overrides, runs_through_all, task_overrides
from hpcexp.sweep.launcher import Compose, PlanLauncher, planned_all
from hpcexp.sweep.stock import StockLauncher, check_installed
from hpcexp.sweep.task import Planning, Stopped, Task, best_value


def multirun(composer: Composer, overrides: list[str], command: list[str], *, fresh: bool) -> int:
    """Exit status: 0 when every job finished, 1 when one failed, 128 + n when signal n stopped the sweep."""
    task = Task(composer.project, command, fresh)
    status = 0
    try:
        _sweep(composer, overrides, task)
    except Stopped as e:
        status = e.exit_status
    print("\n".join(["", *(_line(plan, outcome) for plan, outcome in task.done)]))
    return status or int(any(outcome.state in ("failed", "killed") for _, outcome in task.done))


def planned(composer: Composer, overrides: list[str], command: list[str]) -> list[Plan]:
    """The plans of every combination of `overrides`, none of them started."""
    task = Planning(composer.project, command, fresh=False)
    cfg = composer.load(overrides, RunMode.MULTIRUN)
    if runs_through_all(cfg):
        return _planned_here(composer, overrides, task, cfg)
    with TemporaryDirectory() as nowhere:
        _sweep(composer, overrides, task, Path(nowhere))
    return [plan for plan, _ in task.done]


def _planned_here(composer: Composer, overrides: list[str], task: Task, cfg: DictConfig) -> list[Plan]:
    try:
        return planned_all(task, _compose(composer, cfg), job_overrides(composer, cfg))
    except CompositionError as e:
        raise composer.diagnosis(overrides, RunMode.MULTIRUN, e) from e


def _compose(composer: Composer, cfg: DictConfig) -> Compose:
    """How the jobs of the command line `cfg` are composed."""
    return Many(composer, hydra_overrides(cfg)).compose


def _sweep_dir(parent: Path) -> Path:
    """Where Hydra's sweepers leave what they write."""
    return parent / ".sweeps" / time.strftime("%Y%m%d-%H%M%S")


def _sweep(composer: Composer, overrides: list[str], task: Task, sweep_dir: Path | None = None) -> None:
    """Hydra's `multirun`, with hpcexp's launcher in the place of its basic one and around others."""
    check_installed(overrides)
    cfg = composer.load(overrides, RunMode.MULTIRUN)
    place = sweep_dir or _sweep_dir(composer.project / cfg.run.root / str(cfg.name))
    hydras = [f"hydra.sweep.dir='{place}'", "hydra.sweep.subdir=${hydra.job.num}", "hydra.mode=MULTIRUN"]
    cfg = composer.load([*hydras, *overrides], RunMode.MULTIRUN)
    callbacks = Callbacks(cfg)
    context = HydraContext(config_loader=composer.loader, callbacks=callbacks)
    sweeper: Any = Plugins.instance().instantiate_sweeper(config=cfg, hydra_context=context, task_function=task)
    sweeper.launcher = _launcher(sweeper.launcher, task, _compose(composer, cfg))
    sweeper.launcher.setup(hydra_context=context, task_function=task, config=cfg)
    callbacks.on_multirun_start(config=cfg, config_name=composer.config_name)
    try:
        sweeper.sweep(arguments=composer.repaired(task_overrides(cfg)))
    except (*FAILURES, CompositionError) as e:
        raise composer.diagnosis(overrides, RunMode.MULTIRUN, e) from e
    finally:
        callbacks.on_multirun_end(config=cfg, config_name=composer.config_name)


def _launcher(stock: Any, task: Task, compose: Compose) -> Launcher:
    if isinstance(stock, BasicLauncher) or isinstance(task, Planning):
        return PlanLauncher(compose)
    return StockLauncher(stock, lambda job_overrides: planned_all(task, compose, job_overrides))


def _line(plan: Plan, outcome: Outcome) -> str:
    value = best_value(plan)
    monitor = plan.config["trainer"]["monitor"]
    told = f"{monitor} {value:.4g}" if value is not None else outcome.cause.partition("\n")[0]
    return f"{outcome.state:<9} {plan.experiment}/{RunDir(Path(plan.run_dir)).path.name}  {told}"
