"""CPU time of the process that delivers the default experiment to MLflow, beside the whole command's.

It runs niced beside training and after it: the imports of MLflow and matplotlib, 600 steps' metrics into SQLite, the
pictures, the artifacts, the model. The first run in a directory also makes the MLflow store.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil

from benchmarks.measure import Row, ended_well, start

PAIRS = 2
OURS = ["-m", "hpcexp", "train", "--fresh", "hardware=cpu", "hardware.threads_per_rank=1"]
POLL_S = 0.02


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    first = shipper_seconds(scratch)
    later = [shipper_seconds(scratch) for _ in range(pairs)]
    return [
        Row("MLflow shipper of a default run, where there is no store yet", [first]),
        Row("MLflow shipper of a default run", later),
    ]


def shipper_seconds(directory: Path) -> float:
    """Of one run in `directory`, looked at until the shipper ends: short by at most one look's interval."""
    process = start(OURS, directory)
    seconds = 0.0
    while process.poll() is None:
        seconds = max(seconds, _shipper_now(process.pid))
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    ended_well(process, directory)
    return seconds


def _shipper_now(command: int) -> float:
    """CPU time so far of the shipper below the process `command`, and of what it waited for."""
    try:
        for child in psutil.Process(command).children():
            if "hpcexp.record.shipper" in child.cmdline():
                return float(sum(child.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        pass
    return 0.0
