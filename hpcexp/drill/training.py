"""A training as a user's scheduler starts it: `hpcexp train` in a process of its own, below the drill's directory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hpcexp.compose.composer import Composer
from hpcexp.drill.processes import end_all_in
from hpcexp.drill.results import own_store
from hpcexp.errors import ConfigError, JobFailed, RunError
from hpcexp.files.atomic import write_atomic
from hpcexp.launch.base.launcher import launcher_of
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir
from hpcexp.runs.records.status import RunState, read_status

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent is killed, so that a dead drill leaves no training.

Set between fork and exec, which is safe as the drill has no threads then."""
_LOG_LINES = 12
_SPARE_S = 60.0


@dataclass(frozen=True)
class DrillRequest:
    """What is drilled: the user's command line without the drill's settings."""

    composer: Composer
    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    """`--config-dir` and `--config-name`, as the training takes them too."""

    def plan(self, *more: str) -> Plan:
        """The plan of the experiment with further overrides."""
        overrides = [*self.overrides, *more]
        command = ["hpcexp", "train", *self.flags, *overrides]
        return prepare(self.composer.compose(overrides), self.composer.project, command)


class DrillDirectory:
    """The drill's own directory: its runs and its MLflow store. It goes when the drill is over, unless it is kept."""

    def __init__(self, root: Path) -> None:
        self.path = root / ".drills" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.is_kept = False


@contextmanager
def drill_directory(root: Path) -> Iterator[DrillDirectory]:
    """A new directory below that of the runs. Whatever still runs in it is ended when it is left."""
    directory = DrillDirectory(root)
    made = [path for path in (directory.path, *directory.path.parents) if not path.exists()]
    directory.path.mkdir(parents=True)
    try:
        yield directory
    except JobFailed:
        directory.is_kept = True
        raise
    finally:
        end_all_in(directory.path)
        if not directory.is_kept:
            shutil.rmtree(directory.path)
            for path in made[1:]:
                with contextlib.suppress(OSError):  # another drill is in it
                    path.rmdir()


class Training:
    """One planned training; `start` starts it, or resumes it after an interruption."""

    def __init__(self, request: DrillRequest, directory: DrillDirectory, name: str, *more: str) -> None:
        here = [f"run.root='{directory.path / name}'", "launch.progress=none", *more]
        self.plan = request.plan(*here)
        if self.plan.tracking_uri:
            here.append(f"tracking.uri='{own_store(directory.path)}'")
            self.plan = request.plan(*here)
        self.run = RunDir(Path(self.plan.run_dir))
        self.log = directory.path / f"{name}.log"
        self._project = request.composer.project
        self._arguments = self.log.with_suffix(".arguments")
        """A file, as everybody can read what is on a command line."""
        write_atomic(self._arguments, json.dumps([*request.flags, *request.overrides, *here]), mode=0o600)

    def start(self) -> subprocess.Popen[bytes]:
        """Its supervisor, at work."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "hpcexp", "train"],
                env={**os.environ, "HPCEXP_ARGUMENTS": str(self._arguments)},
                cwd=self._project,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
            )

    def complete(self) -> float:
        """Run it to its end; the seconds that it took. ConfigError or JobFailed where it does not finish."""
        started_at = time.monotonic()
        process = self.start()
        with ended_with_us(process):
            status = process.wait()
        self.check_finished(status)
        return time.monotonic() - started_at

    def check_finished(self, status: int) -> None:
        """ConfigError for a mistake that only the job could find, JobFailed where it has otherwise not finished."""
        if status == 2:
            raise ConfigError(self.last_words())
        if status:
            raise self.failure(f"ended with status {status}")
        if read_status(self.run).state is not RunState.FINISHED:
            raise RunError(
                f"The training ran as another one than was planned: {self.run.path.name}\n"
                "Its code or its config files were changed meanwhile.\nFix: leave them alone, and drill again."
            )

    def failure(self, how: str) -> JobFailed:
        """What to say of a training that did not do as it should."""
        return JobFailed(f"failed: the training {how}:\n{self.last_words()}\nIts log: {self.log}")

    def last_words(self) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def patience_s(self) -> float:
        """How long a training may take to end once it was asked to."""
        settings = self.plan.settings
        return settings.launch.grace_s + settings.tracking.wait_s + _SPARE_S


@contextmanager
def ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """No supervisor outlives the block."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def local_only(plan: Plan) -> None:
    """ConfigError where the plan would not run on this machine now."""
    if not launcher_of(plan.settings).is_here:
        name = plan.choices.get("launch", plan.settings.launch.target)
        raise ConfigError(f"launch={name}: a drill kills processes of this machine.\nFix: launch=local")


def given(overrides: Sequence[str], key: str) -> bool:
    """Whether the user has set `key` on the command line."""
    return any(override.lstrip("+").partition("=")[0] == key for override in overrides)
