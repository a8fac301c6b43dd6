"""The shipper beside a job: started with it, given some time at its end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, read_json

PATIENCE_S = 5.0
"""After which the command says what it is still waiting for."""


class OneShipper:
    """A shipper for the one run of a command, which waits for it."""

    def begin(self, run: RunDir) -> None:
        """Start it."""
        self._process = start_shipper(run)

    def end(self, run: RunDir, plan: Plan) -> None:
        """Give it `tracking.wait_s`."""
        is_tracked = plan.tracking_uri is not None
        await_shipper(self._process, run, plan.config["tracking"]["wait_s"], is_tracked=is_tracked)


class Fleet:
    """Interim."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._all: list[tuple[RunDir, subprocess.Popen[bytes]]] = []

    def add(self, run: RunDir, axes: Mapping[str, str]) -> None:
        self._all.append((run, start_shipper(run)))

    def close(self, wait_s: float, *, is_tracked: bool) -> None:
        for run, process in self._all:
            await_shipper(process, run, wait_s, is_tracked=is_tracked)


def start_shipper(run: RunDir) -> subprocess.Popen[bytes]:
    """A process that outlives this one, and takes its end for the job's."""
    run.logs.mkdir(exist_ok=True)
    with (run.logs / "shipper.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hpcexp.record.shipper", str(run.path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def await_shipper(shipper: subprocess.Popen[bytes], run: RunDir, wait_s: float, *, is_tracked: bool) -> None:
    """Give the shipper its time; it goes on by itself where that is not enough, or where no server answers."""
    deadline = time.monotonic() + wait_s
    told = False
    try:
        while (left := deadline - time.monotonic()) > 0:
            try:
                shipper.wait(timeout=min(left, PATIENCE_S))
                return
            except subprocess.TimeoutExpired:
                note = read_json(run.mlflow)
            if note.get("problem") and not note.get("run_id"):
                return
            if not told:
                told = True
                what = "Sending MLflow the rest" if is_tracked else "Drawing the pictures"
                then = "leaves it to `hpcexp sync`" if is_tracked else "does without"
                print(f"{what}, {left:.0f} s at most. Ctrl-C {then}.", flush=True)
    except KeyboardInterrupt:
        return
