"""The run's frozen plan, trained once more: elsewhere, recorded nowhere, and otherwise the same."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hpcexp.errors import ConfigError, JobFailed, RunError
from hpcexp.hardware.machine import num_cores, num_gpus
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import display
from hpcexp.launch.base.polling import alone, signals_caught
from hpcexp.launch.base.rank_process import Process, Start, start_fresh
from hpcexp.launch.provenance.capture import Capture
from hpcexp.launch.supervisor.lifecycle import run_here
from hpcexp.plan import Plan
from hpcexp.rank_protocol import RankEnv
from hpcexp.reproduce.original import Original, checkpoint_origin
from hpcexp.reproduce.workspace import Code
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read_or_none
from hpcexp.runs.records.lineage import EnvironmentFacts
from hpcexp.runs.records.status import RunState
from hpcexp.text.terminal import say

_STEERING = re.compile(
    "(?!OMP_NUM_THREADS$|MKL_NUM_THREADS$)"
    "(OMP|GOMP|KMP|MKL|OPENBLAS|CUBLAS|CUDNN|NVIDIA_TF32|TORCH_ALLOW|PYTORCH|XLA)_|NCCL_(ALGO|PROTO)|PYTHONHASHSEED$"
    "|TZ$|LANG$|LC_ALL$"
)
"""Variables that affect the computation, except threads, which the plan sets; others say where it runs."""
_LOG_LINES = 12


class _Nothing(Capture):
    """Keeps nothing of where a job comes from: that is known."""

    def begin(self, plan: Plan, run: RunDir, attempt: int, parents: Mapping[str, Any]) -> list[str]:
        return []

    def end(self, run: RunDir) -> None:
        """Nothing is under way."""


class _Nobody:
    """Syncs nothing."""

    def begin(self, run: RunDir, plan: Plan) -> None:
        """Nothing is recorded."""

    def end(self, run: RunDir, plan: Plan) -> None:
        """Nothing was recorded."""


class RerunInterrupted(Exception):  # noqa: N818 - the name says what happened
    """The rerun was stopped by a signal."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def check_devices(plan: Plan) -> None:
    """RunError where this machine has other devices than the run's, or fewer."""
    topology = plan.topology
    on_gpus = topology.accelerator == "cuda"
    here = num_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if on_gpus else num_cores()
    if here >= topology.world_size:
        return
    kind = "GPU" if on_gpus else "CPU core"
    devices = f"{topology.world_size} {kind}{'s' * (topology.world_size > 1)}"
    has = "no GPU" if on_gpus and not here else f"{here} {kind}{'s' * (here > 1)}"
    raise RunError(
        f"The run had {devices}, a rank on each; this machine has {has}, and other devices or another number of ranks "
        "round otherwise.\n"
        f"Fix: a machine with {devices}; `hpcexp drill devices` holds different numbers against each other."
    )


def rerun(original: Original, code: Code, directory: Path, python: str = sys.executable) -> RunDir:
    """Train; the finished run. JobFailed where it fails, Interrupted after a signal."""
    plan = plan_of(original, code, directory)
    gc.enable()
    context = LaunchContext(
        start=_starter(original, code, python),
        catching=signals_caught,
        display=lambda plan: display(plan.settings.launch.progress),
        say=lambda _plan, text: say(text),
        uploader=_Nobody(),
        capture=_Nothing(),
    )
    outcome = alone(run_here(plan, context, fresh=True))
    run = RunDir(Path(plan.run_dir))
    if outcome.state is RunState.FINISHED:
        return run
    if outcome.state is RunState.KILLED:
        raise RerunInterrupted(outcome.exit)
    if outcome.exit == 2:
        raise ConfigError(outcome.cause)
    log = run.rank_log(0)
    words = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]) if log.is_file() else ""
    raise JobFailed(f"The rerun failed: {outcome.cause}\n{words}")


def plan_of(original: Original, code: Code, directory: Path) -> Plan:
    """The run's plan with another project and run directory, and as many devices; which ones is decided later."""
    plan = original.plan
    config = {section: dict(v) if isinstance(v, dict) else v for section, v in plan.config.items()}
    topology = replace(plan.topology, num_nodes=1, device_ids=tuple(range(plan.topology.world_size)))
    config["hardware"] |= {"devices": topology.world_size, "num_nodes": 1}
    config["launch"] = {**config["launch"], "_target_": "hpcexp.launch.launchers.local.Local"}
    config["tracking"] |= {"system_every_s": None}
    if origin := checkpoint_origin(original.run):
        config["run"] |= {"resume_from": str(Path(origin.checkpoint).parent.parent)}
    return replace(
        plan,
        config=config,
        topology=topology,
        run_dir=str(directory / "runs" / plan.experiment / plan.name),
        tracking_uri=None,
        lineage={**plan.lineage, "project": str(code.project)},
    )


def _starter(original: Original, code: Code, python: str) -> Callable[[Start], Process]:
    """Starts ranks with the code and variables of the run. Warm workers would have imported the code of today."""
    recorded = read_or_none(original.run.lineage / "environment.json", EnvironmentFacts)
    now = _steering(os.environ)
    then = now if recorded is None else _steering(recorded.variables)
    start: Callable[[Start], Process] = partial(start_fresh, python=python)
    is_as_now = then == now and not code.has_hpcexp and python == sys.executable
    if original.plan.settings.launch.isolation == "warm" and is_as_now:
        from hpcexp.launch.supervisor.forkserver import start_warm

        start = start_warm
    limit = RankEnv(last_step=original.until).to_environ()

    def begin(devices: Start) -> Process:
        env = {name: value for name, value in devices.env.items() if name in then or name not in now}
        return start(replace(devices, env={**code.environment(env), **then, **limit}))

    return begin


def _steering(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if _STEERING.match(name)}
