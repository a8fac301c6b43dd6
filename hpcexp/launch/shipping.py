"""The shipper beside a job: started with it, given some time at its end."""

from __future__ import annotations

import subprocess
import sys
import time

from hpcexp.launch.display import say
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, read_json

PATIENCE_S = 5.0
"""After which the command says what it is still waiting for."""


def start_shipper(run: RunDir, plan: Plan) -> subprocess.Popen[bytes] | None:
    """A process that outlives this one, and takes its end for the job's. None where there is nothing for it to do."""
    if plan.tracking_uri is None and not plan.config["run"]["pictures"]:
        return None
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
                say(f"{what}, {left:.0f} s at most. Ctrl-C {then}.")
    except KeyboardInterrupt:
        return
    finally:
        assert shipper.stdin is not None
        shipper.stdin.close()
