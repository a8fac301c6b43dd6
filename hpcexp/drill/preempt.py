"""`hpcexp drill preempt`: a training that is killed again and again, compared with one that is not."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpcexp.compare.bitwise import Check, compared
from hpcexp.drill.attempt import Attempt
from hpcexp.drill.kills import MARGIN, KillMode, aims, kill_modes
from hpcexp.drill.results import own_store, recorded, steps_of
from hpcexp.drill.settings import Preempt
from hpcexp.drill.training import (
    DrillDirectory,
    DrillRequest,
    Training,
    drill_directory,
    ended_with_us,
    given,
    local_only,
)
from hpcexp.errors import ConfigError
from hpcexp.launch.resume.interrupted import continuation
from hpcexp.rundir import RunDir
from hpcexp.runs.records.sync import read_sync_record

_STALL_S = 120.0
"""How long an attempt may stand still, where a whole training is faster than that."""
_STALL_FACTOR = 10

Report = Callable[[str], None]


@dataclass(frozen=True)
class Kill:
    """A kill that ended an attempt."""

    aim: int
    landed: int
    """The last step that was reported when the kill happened."""
    mode: KillMode
    resumed_at: int | None
    """The step of the checkpoint that the next attempt resumed from; None if there was none yet."""

    @property
    def is_unheard(self) -> bool:
        """Whether a request to end left no checkpoint of where it came: steps were done again."""
        return self.mode.signal == signal.SIGTERM and (self.resumed_at or 0) < self.landed


@dataclass(frozen=True)
class PreemptVerdict:
    """What the drill has found."""

    seed: int
    steps: int
    kills: tuple[Kill, ...]
    checks: tuple[Check, ...]
    kept: Path | None
    """The drill's runs, where they were kept."""

    @property
    def is_same(self) -> bool:
        """Whether every comparison has found no difference."""
        return all(check.is_same for check in self.checks)


@dataclass
class _Drill:
    """A drill at work. A training that finishes before its last kill is followed by another."""

    request: DrillRequest
    directory: DrillDirectory
    whole: Training
    settled: tuple[str, ...]
    rng: random.Random
    report: Report
    steps: int
    patience_s: float
    kills: list[Kill] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def preempt(request: DrillRequest, settings: Preempt, report: Report) -> PreemptVerdict:
    """Train whole, then killed; compare. ConfigError for what can be known to be wrong, JobFailed for a failed run."""
    plan = request.plan()
    local_only(plan)
    if plan.steps:
        _check_length(plan.steps.total, settings.kills)
    seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
    report(f"{plan.experiment}: {settings.kills} kills, seed {seed} (drill.seed={seed} has the same ones again)")
    root = Path(plan.run_dir).parent.parent
    with drill_directory(root) as directory:
        verdict = _drilled(request, settings, directory, seed, report)
        directory.is_kept = settings.keep or not verdict.is_same
        return PreemptVerdict(
            seed, verdict.steps, verdict.kills, verdict.checks, directory.path if directory.is_kept else None
        )


def _drilled(
    request: DrillRequest, settings: Preempt, directory: DrillDirectory, seed: int, report: Report
) -> PreemptVerdict:
    both = () if given(request.overrides, "trainer.log_every_n_steps") else ("trainer.log_every_n_steps=1",)
    whole = Training(request, directory, "whole", *both)
    took_s = whole.complete()
    steps = steps_of(whole.run)
    report(f"without interruption: {steps} steps, {took_s:.1f} s")
    _check_length(steps, settings.kills)
    every = max(1, steps // (4 * (settings.kills + 1)))
    dense = () if given(request.overrides, "checkpoint.every_steps") else (f"checkpoint.every_steps={every}",)
    patience_s = max(_STALL_S, _STALL_FACTOR * took_s)
    rng = random.Random(seed)  # noqa: S311 - nothing to be kept secret
    drill = _Drill(request, directory, whole, (*both, *dense), rng, report, steps, patience_s)
    left = kill_modes(drill.rng, settings.kills, whole.plan.topology.world_size)
    last = steps - MARGIN
    number = 0
    while left:
        number += 1
        left = _round(drill, number, left, last)
        last = max(len(left), last * 2 // 3)
    return PreemptVerdict(seed, steps, tuple(drill.kills), tuple(drill.checks), None)


def _round(drill: _Drill, number: int, left: list[KillMode], last: int) -> list[KillMode]:
    """Train once with the kills that are left; those that it was too fast for."""
    training = Training(drill.request, drill.directory, f"killed-{number}", *drill.settled)
    done = 0
    earlier: set[int] = set()
    landed = 0
    for aim, mode in zip(aims(drill.rng, len(left), last), left, strict=True):
        kill = _attempt(drill, training, max(aim, landed + 1), mode, earlier)
        if kill is None:
            drill.report(f"  {mode.text} at step {aim} came too late: the training had ended. Once more, earlier.")
            break
        drill.kills.append(kill)
        landed, done = kill.landed, done + 1
        drill.report(f"  {_kill_text(kill)}")
    else:
        _finish(drill, training)
    _compare(drill, training, number)
    return left[done:]


def _attempt(drill: _Drill, training: Training, aim: int, mode: KillMode, earlier: set[int]) -> Kill | None:
    """Start or resume the training and kill it at `aim`; None if it finished before that."""
    process = training.start()
    with ended_with_us(process):
        attempt = Attempt(training.plan, training.run, process, earlier)
        try:
            landed = attempt.reach(aim, drill.patience_s)
        except TimeoutError as e:
            raise training.failure(str(e)) from e
        if landed is not None:
            attempt.kill(mode)
        status = _ended(training, process)
    earlier.update(attempt.ranks.values())
    if status == 0:
        training.check_finished(status)
        return None
    if landed is None or status != mode.exit_status:
        after = "" if landed is None else f" after {mode.text}, which gives {mode.exit_status}"
        raise training.failure(f"ended with status {status}{after}")
    found = continuation(training.plan, verify=False)
    return Kill(aim, landed, mode, found.step if found else None)


def _ended(training: Training, process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(training.patience_s())
    except subprocess.TimeoutExpired as e:
        raise training.failure(f"has not ended {training.patience_s():.0f} s after it was killed") from e


def _finish(drill: _Drill, training: Training) -> None:
    """The last attempt, which nobody kills."""
    took_s = training.complete()
    drill.report(f"  ran to its end, {took_s:.1f} s")


def _compare(drill: _Drill, training: Training, number: int) -> None:
    found = compared(drill.whole.run, training.run)
    if training.plan.tracking_uri:
        _await_sync(training.run, training.patience_s())
        found.append(recorded(own_store(drill.directory.path), training.run, 1 + number))
    drill.checks += found


def _await_sync(run: RunDir, limit_s: float) -> None:
    """The sync process of a killed supervisor may still be at work, and the last one waits for it."""
    deadline = time.monotonic() + limit_s
    while not read_sync_record(run).synced and time.monotonic() < deadline:
        time.sleep(0.1)


def _check_length(steps: int, kills: int) -> None:
    if kills > steps - MARGIN:
        raise ConfigError(
            f"drill.kills={kills}: the training has {steps} steps, and the last {MARGIN} are too late for a kill.\n"
            f"Fix: drill.kills={steps - MARGIN}, or a longer training."
            if steps > MARGIN
            else f"The training has {steps} steps: too few to be killed in between.\nFix: trainer.max_epochs=…, more."
        )


def _kill_text(kill: Kill) -> str:
    goes_on = "from the start: no checkpoint yet" if kill.resumed_at is None else f"from step {kill.resumed_at}"
    return f"step {kill.landed} (aimed at {kill.aim}): {kill.mode.text}, resumed {goes_on}"
