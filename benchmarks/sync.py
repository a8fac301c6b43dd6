"""CPU time of the process that syncs runs to MLflow, beside the whole command's.

It runs niced beside training and after it: the import of MLflow, 600 steps' metrics into SQLite, the pictures, the
artifacts, the model. The first run in a directory also makes the MLflow store. A sweep has one for all of its runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.measure import Row, cpu_seconds, ended_well, start
from benchmarks.size import size
from hpcexp.files.atomic import write_json
from hpcexp.plan import load_plan, save_plan
from hpcexp.rundir import RunDir, SweepDir, find_runs

PAIRS = 2
OURS = ["-m", "hpcexp", "train", "--fresh", "hardware=cpu", "hardware.threads_per_rank=1"]
OURS += size([], ["trainer.max_epochs=1"])
POLL_S = 0.02
RUNS = size(30, 2)
"""Of a sweep."""


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    first = sync_seconds(scratch)
    later = [sync_seconds(scratch) for _ in range(pairs)]
    run = next(find_runs(scratch / "runs"))
    singles, sync_processes = [], []
    for number in range(pairs):
        singles.append(single_seconds(_copied(run, f"single-{number}"), scratch))
        sync_processes.append(
            sweep_sync_seconds([_copied(run, f"sync-{number}-{i}") for i in range(RUNS)], scratch, number)
        )
    return [
        Row("MLflow sync process of a default run, where there is no store yet", [first]),
        Row("MLflow sync process of a default run", later),
        Row(
            f"MLflow sync process of a sweep, each of {RUNS} finished default runs / a sync process for one",
            sync_processes,
            singles,
            0.1,
        ),
    ]


def sync_seconds(directory: Path) -> float:
    """Of one run in `directory`, looked at until the sync process ends: short by at most one look's interval."""
    process = start(OURS, directory)
    seconds = 0.0
    while process.poll() is None:
        seconds = max(seconds, _sync_now(process.pid))
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    ended_well(process, directory)
    return seconds


def single_seconds(run: RunDir, scratch: Path) -> float:
    """Of a process that syncs one finished run."""
    return cpu_seconds(["-m", "hpcexp.tracking.sync.run_process", str(run.path)], scratch)


def sweep_sync_seconds(runs: list[RunDir], scratch: Path, number: int) -> float:
    """For each of the runs, of a process that syncs them all; its imports are a part."""
    sweep = SweepDir(scratch / "runs" / "sweeps" / f"sync-{number}")
    write_json(sweep.definition, {"name": sweep.path.name, "question": "", "axes": {}})
    write_json(sweep.status, {"state": "finished", "started": 1.0, "ended": 2.0})
    entries = [{"run": str(run.path), "axes": {"copy": run.path.name}} for run in runs]
    lines = "".join(json.dumps(line) + "\n" for line in [*entries, {"end": True}])
    return cpu_seconds(["-m", "hpcexp.tracking.sync.sweep_process", str(sweep.path)], scratch, lines) / len(runs)


def _copied(run: RunDir, name: str) -> RunDir:
    """Another run that did the same and is not synced yet."""
    copy = RunDir(run.path.with_name(name))
    shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("mlflow.json", "plots"))
    save_plan(replace(load_plan(run.plan), name=name, run_dir=str(copy.path)), copy.plan)
    return copy


def _sync_now(command: int) -> float:
    """CPU time so far of the sync process below the process `command`, and of what it waited for."""
    try:
        for child in psutil.Process(command).children():
            if "hpcexp.tracking.sync.run_process" in child.cmdline():
                return float(sum(child.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        pass
    return 0.0
