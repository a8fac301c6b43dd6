"""`-m hydra/sweeper=optuna`: a search on the command line, in the grammar of Hydra's own Optuna plugin.

hpcexp's driver runs `spec_of` what is asked. Where a launcher of Hydra's is to run the jobs, `OptunaSweeper` gives it
some at a time. Importing this module does not import Optuna.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hpcexp.checks.values import schema_problems
from hpcexp.compare.metrics import value_of
from hpcexp.compose.composer import as_given
from hpcexp.errors import ConfigError, JobFailed
from hpcexp.launch.base.outcome import Outcome
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState
from hpcexp.schema.settings import Settings
from hpcexp.schema.sweep import Budget, Search
from hpcexp.sweep.hydra.optuna_settings import PLUGIN, translated
from hpcexp.sweep.hydra.task import HydraTask
from hpcexp.sweep.spec.axes import axis_of, counting, params_of
from hpcexp.sweep.spec.search_problems import unfit
from hpcexp.sweep.spec.spec import Objective, Spec
from hpcexp.sweep.store.directory import sweep_name, sweeps_dir
from hpcexp.train.tasks.planning import asked_task

if TYPE_CHECKING:
    from hpcexp.sweep.search.study import Study, Trial

_MODES = {"maximize": "max", "minimize": "min", "max": "max", "min": "min"}
_NAMES = {
    "search.study": "hydra.sweeper.study_name",
    "search.": "hydra.sweeper.",
    "budget.trials": "hydra.sweeper.n_trials",
}
"""What a search has in a sweep's file → what it is typed as here."""
_LOOK_EVERY_S = 1.0
_JOBS = 2
"""Trials at a time for a launcher of Hydra's."""
SETTLE_S = 10.0


def is_searched(cfg: DictConfig) -> bool:
    """Whether the command line asks for this sweeper."""
    return cfg.hydra.sweeper._target_ in (f"{OptunaSweeper.__module__}.{OptunaSweeper.__name__}", PLUGIN)


def sweeper_of(cfg: DictConfig, context: HydraContext, task: TaskFunction) -> OptunaSweeper:
    """The sweeper, ready; Hydra itself makes only those of its own and in `hydra_plugins`."""
    sweeper = OptunaSweeper()
    sweeper.setup(hydra_context=context, task_function=task, config=cfg)
    return sweeper


def spec_of(cfg: DictConfig, overrides: Sequence[str], loader: ConfigLoader) -> Spec:
    """What is asked: `cfg` composed for a multirun, and its `overrides` but for those of Hydra's own node.

    ConfigError names all that is wrong with the sweeper's settings.
    """
    (settings, is_fail_fast, refused), given = _settings(cfg), _given(cfg, overrides, loader)
    axes = {_key(o): axis_of(o, is_searched=True) for o in given if o.is_sweep_override()}
    base = tuple(as_given(str(o.input_line)) for o in given if not o.is_sweep_override())
    search = {"study": settings["study_name"], **{k: settings[k] for k in ("sampler", "pruner", "storage", "seed")}}
    objectives, problems = _objectives(settings["metric"], settings["direction"], cfg)
    problems += refused
    problems += map(as_typed, schema_problems(Search, search, "search."))
    problems += map(as_typed, schema_problems(Budget, {"trials": settings["n_trials"]}, "budget."))
    jobs = settings["n_jobs"]
    if jobs is not None and not (isinstance(jobs, int) and jobs >= 1):
        problems.append(f"hydra.sweeper.n_jobs={jobs}: not a number of jobs.\nFix: hydra.sweeper.n_jobs=2")
    elif jobs is not None and not any(_key(o) == "launch.max_jobs" for o in given):
        base = (*base, f"launch.max_jobs={jobs}")
    if problems:
        raise ConfigError(problems)
    overrides = [*(str(o.input_line) for o in given), *map(str, objectives)]
    name = settings["study_name"] or sweep_name(str(cfg.name), ["search"], overrides)
    budget = Budget(trials=settings["n_trials"])
    question = str(cfg.get("notes") or "")
    return Spec(
        name,
        question,
        base,
        axes,
        objectives=objectives,
        search=Search(**search),
        budget=budget,
        is_fail_fast=is_fail_fast,
    )


def as_typed(problem: str) -> str:
    """A problem in the words of a sweep's file, in those of the command line."""
    for there, here in _NAMES.items():
        problem = problem.replace(there, here)
    return problem


class OptunaSweeper(Sweeper):
    """Asks for `n_jobs` trials at a time, has a launcher run them, and stores their results in the study.

    A launcher gives nothing back before all are done, and has no way to ask: nothing can be pruned.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called once, before `sweep`."""
        assert isinstance(task_function, HydraTask)
        self.hydra_context, self.config, self._task = hydra_context, config, task_function
        self._unplanned: list[str] = []
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> list[JobReturn]:
        """Run trials until there are `n_trials`, those of an interrupted search first.

        JobFailed at the end where some could not be planned; those that were are the launcher's to tell of.
        """
        spec, loader = (
            spec_of(self.config, arguments, self.hydra_context.config_loader),
            self.hydra_context.config_loader,
        )
        self._check(spec)
        from hpcexp.sweep.search.plots import draw_study
        from hpcexp.sweep.search.study import Study

        project, epochs = self._task.project, self.config.trainer.max_epochs
        place = sweeps_dir(project / self.config.run.root) / ".hydra" / spec.name
        study = Study(spec, spec.objectives, place, project=project, max_epochs=epochs)
        try:
            done = self._run(study, _given(self.config, arguments, loader))
            draw_study(study, place / "plots")
            print(_best_text(study), flush=True)
        finally:
            if problem := study.settle(SETTLE_S):
                print(f"The study lacks results, which it gets when the sweep resumes: {problem}", flush=True)
            study.close()
        if self._unplanned:
            raise JobFailed("\n\n".join(["These trials could not be planned:", *self._unplanned]))
        return done

    def _check(self, spec: Spec) -> None:
        problems = list(map(as_typed, unfit(spec, spec.objectives, self.config.trainer.max_epochs)))
        assert spec.search is not None
        if spec.search.pruner != "none":
            launcher = self.config.hydra.launcher._target_.rpartition(".")[2]
            problems.append(
                f"hydra.sweeper.pruner={spec.search.pruner}: {launcher} cannot end a job that does worse than others.\n"
                "Fix: hydra.sweeper.pruner=none, or leave hydra/launcher out."
            )
        if problems:
            raise ConfigError(problems)

    def _run(self, study: Study, given: Sequence[Override]) -> list[JobReturn]:
        base = [str(o.input_line) for o in given if not o.is_sweep_override()]
        typed = {_key(o): o.get_key_element() for o in given if o.is_sweep_override()}
        waiting, done = study.unfinished(), list[JobReturn]()
        while batch := self._next(study, waiting):
            jobs = [[*base, *(f"{typed[axis]}={text}" for axis, text in trial.params.items())] for trial in batch]
            done += self._launched(study, batch, jobs, len(done))
        return done

    def _next(self, study: Study, waiting: list[Trial]) -> list[Trial]:
        """Trials to run now; empty where there will be no more."""
        while True:
            num_jobs = self.config.hydra.sweeper.get("n_jobs") or _JOBS
            batch = waiting[:num_jobs]
            del waiting[: len(batch)]
            while len(batch) < num_jobs and (trial := study.ask()) is not None:
                batch.append(trial)
            if batch or study.problem is None:
                return batch
            time.sleep(_LOOK_EVERY_S)  # the storage does not answer; `ask` says when that has been for too long

    def _launched(
        self, study: Study, batch: Sequence[Trial], jobs: Sequence[Sequence[str]], index: int
    ) -> Sequence[JobReturn]:
        """Run trials and store their results. One whose values cannot be planned has failed."""
        before = len(self._task.done)
        try:
            returned = self.launcher.launch(jobs, initial_job_idx=index)
        except ConfigError as e:
            if len(batch) > 1:
                return [r for t, j in zip(batch, jobs, strict=True) for r in self._launched(study, [t], [j], index)]
            self._unplanned.append(str(e))
            study.tell(batch[0].number, RunState.FAILED)
            return []
        for trial, (plan, outcome) in zip(batch, self._task.done[before:], strict=True):
            _report(study, trial, plan, outcome)
        return returned


def _report(study: Study, trial: Trial, plan: Plan, outcome: Outcome) -> None:
    """Store the result of a trial. One that was killed is left unfinished, to be resumed."""
    if outcome.state in (RunState.FINISHED, RunState.SKIPPED):
        run = RunDir(Path(plan.run_dir))
        study.tell(trial.number, RunState.FINISHED, [value_of(run, o.metric, o.mode) for o in study.objectives])
    elif outcome.state is RunState.FAILED:
        study.tell(trial.number, RunState.FAILED)


def _best_text(study: Study) -> str:
    """The best trial, or those of the front."""
    trials, lines = study.trials(), [f"Study {study.name} in {study.where}:"]
    for number in study.best():
        values = "  ".join(f"{o.metric} {v:.4g}" for o, v in zip(study.objectives, trials[number].values, strict=True))
        params = " ".join(f"{axis}={value}" for axis, value in trials[number].params.items())
        lines.append(f"  trial {number}  {values}  {params}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  no trial has finished"])


def _settings(cfg: DictConfig) -> tuple[dict[str, Any], bool, list[str]]:
    settings: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    return translated(settings)


def _given(cfg: DictConfig, overrides: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """Axes and base; what the command line says replaces `hydra.sweeper.params`."""
    return counting(OverridesParser.create(loader).parse_overrides([*params_of(cfg), *overrides]))


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def _directions(cfg: DictConfig) -> dict[str, str | None]:
    """Metric → better direction, as `trainer.mode` says of its monitor and the task of its metrics."""
    settings = Settings({name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("task", "trainer")})
    asked = asked_task(settings.task, settings.trainer, None, is_used=True)
    return {**(asked.metrics or {}), settings.trainer.monitor: asked.mode}


def _objectives(metric: Any, direction: Any, cfg: DictConfig) -> tuple[tuple[Objective, ...], list[str]]:
    """What is optimised, and what is wrong with it."""
    metrics = metric if isinstance(metric, list) else [metric or cfg.trainer.monitor]
    known = _directions(cfg)
    default = [known.get(name) for name in metrics]
    directions = direction if isinstance(direction, list) else [direction] * len(metrics) if direction else default
    if len(directions) != len(metrics) or any(way not in _MODES for way in directions):
        named = ", ".join(map(str, metrics))
        return (), [
            f"hydra.sweeper.direction={direction}: this does not say whether more or less of {named} is better.\n"
            "Fix: hydra.sweeper.direction=maximize, or =minimize; of several, =[maximize,minimize]."
        ]
    return tuple(Objective(str(m), _MODES[way]) for m, way in zip(metrics, directions, strict=True)), []
