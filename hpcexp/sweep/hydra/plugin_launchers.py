"""Hydra's stock launchers (joblib, submitit): jobs in processes of theirs, each of which supervises its own ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from hpcexp.compose.composer import composed
from hpcexp.compose.resolvers import register
from hpcexp.errors import ConfigError, HpcexpError, JobFailed
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.restarts import Restarts
from hpcexp.launch.dispatch import launch
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.status.state import current_state, supervisor_alive
from hpcexp.sweep.hydra.task import HydraTask, MultirunStopped, best_value
from hpcexp.targets.instantiate import on_path
from hpcexp.text.terminal import guard

PACKAGES = {
    "joblib": ("hydra_joblib_launcher", "hydra-joblib-launcher"),
    "submitit_local": ("hydra_submitit_launcher", "hydra-submitit-launcher"),
    "submitit_slurm": ("hydra_submitit_launcher", "hydra-submitit-launcher"),
    "ray": ("hydra_ray_launcher", "hydra-ray-launcher"),
    "rq": ("hydra_rq_launcher", "hydra-rq-launcher"),
}
"""Option of hydra/launcher → the plugin's module below hydra_plugins, and its package."""

_HERE = ("JoblibLauncher", "LocalLauncher")
"""Launchers whose jobs run on this machine: they can be planned, and stopped, from here."""
_STOP_S = 0.2

Planner = Callable[[Sequence[Sequence[str]]], list[Plan]]


def check_installed(overrides: Sequence[str]) -> None:
    """ConfigError where the overrides ask for a launcher whose package is not there."""
    for override in overrides:
        key, _, option = override.partition("=")
        module, package = PACKAGES.get(option, ("", ""))
        if key == "hydra/launcher" and module and not _is_there(f"hydra_plugins.{module}"):
            raise ConfigError(f"{override}: this launcher is not installed.\nFix: pip install {package}")


@dataclass(frozen=True)
class Ended:
    """What comes back from a job's process."""

    plan: Plan | None
    """None where the job could not be planned there."""
    outcome: Outcome


@dataclass(frozen=True)
class RemoteTask:
    """Hydra's task function in a process of the launcher's: plans one job there and supervises it. It is pickled."""

    project: Path
    command: list[str]
    fresh: bool
    stop: Path
    """A file that appears when the sweep is stopped: jobs that have not started by then do not start."""
    cuda_devices: str | None
    """CUDA_VISIBLE_DEVICES of the command."""
    progress: str
    """What `launch.progress=auto` means: jobs that share a terminal would overwrite each other's bars."""
    parent: int | None
    """The command's process, if jobs end with it; submitit's jobs outlive it."""

    def __call__(self, cfg: DictConfig) -> Ended:
        """How the job ended; raises nothing for expected failures."""
        guard()
        on_path(self.project)
        register(self.project)
        hydra = HydraConfig.get()
        self._see_devices(hydra)
        parent = None if self.parent == os.getpid() else self.parent  # joblib runs one job at a time in the command
        if parent is not None:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        plan = None
        try:
            plan = prepare(composed(_with_hydra(cfg, hydra)), self.project, self.command)
            if self.stop.exists():
                return Ended(plan, Outcome(RunState.KILLED, "not started: the sweep was stopped", 130))
            print(f"{plan.experiment}/{plan.name}", flush=True)
            outcome = self._run(self._shown(plan))
            if parent is not None and os.getppid() != parent:
                os._exit(1)  # nobody reads the result, and joblib's worker would wait for minutes
        except HpcexpError as e:
            outcome = Outcome(RunState.FAILED, str(e), 2)
        return Ended(plan, outcome)

    def _run(self, plan: Plan) -> Outcome:
        """Run the job; it resumes where a rank was killed."""
        outcome, restarts = launch(plan, fresh=self.fresh), Restarts(plan.settings.launch.retries)
        while outcome.signal and not self.stop.exists():
            resumes, outcome = restarts.count(plan, outcome)
            if not resumes:
                break
            print(outcome.cause, flush=True)
            outcome = launch(plan, fresh=False)
        return outcome

    def _shown(self, plan: Plan) -> Plan:
        launch = plan.settings.launch
        if launch.progress != "auto":
            return plan
        return replace(plan, config={**plan.config, "launch": {**launch.given, "progress": self.progress}})

    def _see_devices(self, hydra: HydraConf) -> None:
        """submitit_local hides all GPUs from a job that asks for no number of them; hpcexp shares them out itself."""
        launcher = hydra.launcher
        if "gpus_per_node" in launcher and launcher.gpus_per_node is None and self.cuda_devices != "":
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if self.cuda_devices is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.cuda_devices


class StockLauncher(Launcher):
    """A launcher of Hydra's whose jobs are planned before, reported after, and stopped together."""

    def __init__(self, inner: Launcher, planned: Planner) -> None:
        self._inner, self._planned = inner, planned
        self._is_here = type(inner).__name__ in _HERE
        self._is_joblib = type(inner).__name__ == "JoblibLauncher"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called before the first batch."""
        assert isinstance(task_function, HydraTask)
        self._task = task_function
        self._reports_failures = not config.hydra.sweeper._target_.endswith(".BasicSweeper")
        self._stop = Path(config.hydra.sweep.dir) / "stopped"
        remote = RemoteTask(
            self._task.project,
            self._task.command,
            self._task.fresh,
            self._stop,
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            "none" if self._is_joblib else "lines",
            os.getpid() if self._is_joblib else None,
        )
        self._inner.setup(hydra_context=hydra_context, task_function=remote, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan all that run on this machine, run all, and keep how each ended."""
        plans: list[Plan | None] = [None] * len(job_overrides)
        if self._is_here:
            plans = list(self._planned(job_overrides))
        self._task.warn_of([plan for plan in plans if plan])
        before = [_attempt(plan) for plan in plans]
        with _stopping(self._stop, [plan for plan in plans if plan]) as caught:
            jobs, why = self._launched(job_overrides, initial_job_idx)
        came = zip(jobs or [None] * len(plans), plans, before, strict=True)
        ended = [_ended(job, plan, why, attempt) for job, plan, attempt in came]
        self._task.done += [(e.plan, e.outcome) for e in ended if e.plan]
        for e in ended:
            if e.outcome.state is RunState.FAILED:
                print(f"failed: {_name(e)}{e.outcome.cause}", flush=True)
        if caught:
            raise MultirunStopped(128 + caught[0])
        if lost := [e for e in ended if e.plan is None]:
            raise JobFailed(lost[0].outcome.cause)
        return [self._returned(e, overrides) for e, overrides in zip(ended, job_overrides, strict=True)]

    def _launched(self, job_overrides: Sequence[Sequence[str]], index: int) -> tuple[list[Any] | None, str]:
        """What the launcher gives back; None where it failed itself, and why."""
        try:
            return list(self._inner.launch(job_overrides, initial_job_idx=index)), ""
        except Exception as e:  # noqa: BLE001 - whatever a plugin raises, its jobs are reported
            return None, f"{type(e).__name__}: {e}"
        finally:
            if self._is_joblib:
                _end_workers()

    def _returned(self, ended: Ended, overrides: Sequence[str]) -> JobReturn:
        """As the sweeper wants it. Hydra's own would raise the first failure; others want to know what failed."""
        job = JobReturn(overrides=overrides, task_name="hpcexp", status=JobStatus.COMPLETED)
        if ended.outcome.state in (RunState.FAILED, RunState.KILLED):
            if self._reports_failures:
                job.return_value, job.status = JobFailed(ended.outcome.cause), JobStatus.FAILED
        else:
            assert ended.plan is not None
            job.return_value = best_value(ended.plan)
        return job


def _attempt(plan: Plan | None) -> str | None:
    """Identifies the attempt in a plan's directory."""
    return read_status(RunDir(Path(plan.run_dir))).token if plan else None


def _ended(job: JobReturn | None, plan: Plan | None, why: str, before: str | None) -> Ended:
    """How a job ended, from what came back of it, or else from its directory; `before`: the attempt that was there."""
    if job is not None and isinstance(job._return_value, Ended):
        return job._return_value
    if job is not None:
        why = f"{type(job._return_value).__name__}: {job._return_value}"
    status = read_status(RunDir(Path(plan.run_dir))) if plan else Status()
    if plan is None or status.token == before:
        return Ended(plan, Outcome(RunState.FAILED, why, 1))
    state = current_state(RunDir(Path(plan.run_dir)), status)
    return Ended(plan, Outcome(state if state is not RunState.RUNNING else RunState.KILLED, status.cause or why, 1))


def _end_with(parent: int) -> None:
    """Stop this process's job once `parent` is gone."""
    while os.getppid() == parent:
        time.sleep(_STOP_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_workers() -> None:
    """joblib keeps its idle workers for minutes, and ends them when Python exits, which a command does not wait for."""
    from joblib.externals.loky import reusable_executor  # type: ignore[import-untyped]

    if reusable_executor._executor is not None:
        reusable_executor._executor.terminate(kill_workers=True)


@contextmanager
def _stopping(stop: Path, plans: Sequence[Plan]) -> Iterator[list[int]]:
    """Signals that arrive meanwhile. The first stops all jobs with a checkpoint; a second one ends the command."""
    caught: list[int] = []
    is_over = threading.Event()

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.touch()
        threading.Thread(target=_stop_all, args=(plans, number, is_over), daemon=True).start()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if plans else ()
    before = {n: signal.signal(n, catch) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield caught
    finally:
        is_over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_all(plans: Sequence[Plan], number: int, is_over: threading.Event) -> None:
    """Ask every supervisor to stop, also one that is about to begin. A terminal's Ctrl-C has reached ours already."""
    signalled: set[int] = set()
    while not is_over.wait(_STOP_S):
        for plan in plans:
            run = RunDir(Path(plan.run_dir))
            status = read_status(run)
            pid = status.pid or 0
            if status.state is RunState.RUNNING and pid not in signalled and supervisor_alive(run, status):
                signalled.add(pid)
                if number != signal.SIGINT or _group(pid) != os.getpgrp():
                    _ask_to_end(pid)


def _ask_to_end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _with_hydra(cfg: DictConfig, hydra: HydraConf) -> DictConfig:
    """A job's configuration with the node that Hydra takes out of it."""
    whole = deepcopy(cfg)
    with read_write(whole), open_dict(whole):
        whole["hydra"] = hydra
    return whole


def _name(ended: Ended) -> str:
    return f"{ended.plan.experiment}/{ended.plan.name}: " if ended.plan else ""


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
