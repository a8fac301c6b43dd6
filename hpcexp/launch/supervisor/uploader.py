"""The sync process of a job or a sweep: started with it, given some time at its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcexp.files.locks import holder_of, process_name
from hpcexp.files.untrusted import UnusableFileError, open_append
from hpcexp.plan import Plan
from hpcexp.rundir import RecordDir, RunDir, SweepDir
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.text.terminal import say

PATIENCE_S = 5.0
"""After which the command says what it is still waiting for."""
_RESTART_S = 10.0
"""A sync process that has died is started again as often."""


class RunUploader:
    """A sync process for the one run of a command, which waits for it."""

    def begin(self, run: RunDir, plan: Plan) -> None:
        """Start it."""
        self._process = start_sync(run) if has_work(plan) else None

    def end(self, run: RunDir, plan: Plan) -> None:
        """Give it `tracking.wait_s`."""
        if self._process is None:
            return
        is_tracked = plan.tracking_uri is not None
        try:
            await_sync(self._process, run, plan.settings.tracking.wait_s, is_tracked=is_tracked)
        finally:
            assert self._process.stdin is not None
            self._process.stdin.close()


def has_work(plan: Plan) -> bool:
    """Whether there is anything to upload or to draw."""
    return plan.tracking_uri is not None or bool(plan.settings.run.pictures)


def start_sync(run: RunDir) -> subprocess.Popen[bytes]:
    """A sync process that outlives this one, and takes its end for the job's."""
    return _started("hpcexp.tracking.sync.run_process", run)


def await_sync(process: subprocess.Popen[bytes], record: RecordDir, wait_s: float, *, is_tracked: bool) -> None:
    """Wait for the sync process; it continues by itself if the time is not enough or no server answers."""
    deadline = time.monotonic() + wait_s
    has_said = False
    try:
        while (left := deadline - time.monotonic()) > 0:
            try:
                process.wait(timeout=min(left, PATIENCE_S))
                return
            except subprocess.TimeoutExpired:
                if _is_unreachable(record):
                    return
            if not has_said:
                has_said = True
                other = _other(record)
                is_other = other not in (None, process_name(process.pid))
                what = "Sending MLflow the rest" if is_tracked else "Drawing the pictures"
                what = f"Waiting for {other}, which syncs it already" if is_other else what
                then = "leaves it to `hpcexp sync`" if is_tracked else "does without"
                say(f"{what}, {left:.0f} s at most. Ctrl-C {then}.")
    except KeyboardInterrupt:
        return


def _other(record: RecordDir) -> str | None:
    """Who syncs the record; None where nobody does, or its lock says nothing."""
    with contextlib.suppress(UnusableFileError):
        return holder_of(record.sync_lock)
    return None


def _is_unreachable(record: RecordDir) -> bool:
    """Whether no server has accepted anything of the record, for a noted reason."""
    try:
        known = read_sync_record(record)
    except UnusableFileError:
        return False  # what belongs below it is uploaded all the same
    return bool(known.problem) and not known.run_id


def _problem(record: RecordDir) -> str | None:
    """Why MLflow lacks something of the record, if that is noted."""
    try:
        return read_sync_record(record).problem
    except UnusableFileError as e:
        return str(e).partition("\n")[0].removesuffix(".")


class SweepUploader:
    """The one process that uploads all runs of a sweep: started with the first, and restarted if it dies."""

    def __init__(self, sweep_dir: Path) -> None:
        self._sweep = SweepDir(sweep_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._next_start = 0.0
        self._lines: list[bytes] = []
        """Every message to the process, for one that is restarted."""
        self._unsent = b""
        """What the present process has not received yet."""

    def add(self, run: RunDir, axes: Mapping[str, str]) -> None:
        """Upload a run, running or ended. `axes`: its value on each axis, as typed. Never waits."""
        self._send({"run": str(run.path.absolute()), "axes": dict(axes)})

    def tend(self) -> None:
        """Start the process if there is none, and send it what it lacks. Never waits."""
        if self._lines and self._is_dead and time.monotonic() >= self._next_start:
            self._start()
        self._write()

    def close(self, wait_s: float, *, is_tracked: bool) -> None:
        """Wait for the rest; the process continues by itself if the time is not enough or no server answers."""
        if not self._lines:
            return
        self._next_start = 0.0
        self._send({"end": True})
        deadline = time.monotonic() + wait_s
        try:
            while self._unsent and not self._is_dead and time.monotonic() < deadline:
                select.select([], [self._pipe], [], 0.1)
                self._write()
        except KeyboardInterrupt:
            deadline = 0.0
        if self._process is None:
            return
        self._let_go()
        await_sync(self._process, self._sweep, deadline - time.monotonic(), is_tracked=is_tracked)
        status, problem = self._process.poll(), _problem(self._sweep)
        # If no server answers, the process retries for a while by itself.
        if status not in (None, 0) or (status is None and problem):
            why = problem or f"{self._sweep.logs / 'sync.log'} says why"
            print(f"MLflow lacks some of it ({why}): `hpcexp sync` sends it.", flush=True)

    @property
    def _is_dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def _pipe(self) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _send(self, what: Mapping[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
        self._lines.append(line)
        self._unsent += line
        self.tend()

    def _start(self) -> None:
        self._next_start = time.monotonic() + _RESTART_S
        self._let_go()
        with contextlib.suppress(OSError):  # no memory or disk for it now; the runs' directories keep everything
            self._process = _started("hpcexp.tracking.sync.sweep_process", self._sweep)
            os.set_blocking(self._pipe, False)
            self._unsent = b"".join(self._lines)

    def _write(self) -> None:
        if not self._is_dead and self._unsent:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                self._unsent = self._unsent[os.write(self._pipe, self._unsent) :]

    def _let_go(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _started(module: str, record: RecordDir) -> subprocess.Popen[bytes]:
    record.logs.mkdir(exist_ok=True)
    with os.fdopen(open_append(record.logs / "sync.log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(record.path)],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
