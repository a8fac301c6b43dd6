"""CPU time of a cold job until its first step against importing torch and building an optimizer; interleaved.

python benchmarks/coldstart.py RUN_DIR [--pairs 3]

RUN_DIR holds the `plan.yaml` of a run of one short epoch, as `hpcexp train launch=dry trainer.max_epochs=1
trainer.limit_train_batches=1` makes it; the job runs in copies of it. Its time counts the whole process: imports,
building, one step, validation, test, end.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FLOOR = "import torch; torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())"
LIGHTNING = f"{FLOOR}; import pytorch_lightning"


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    times: dict[str, list[float]] = {"torch + optimizer": [], "… + stock Lightning": [], "hpcexp job": []}
    for _ in range(args.pairs + 1):
        times["torch + optimizer"].append(cpu_seconds([sys.executable, "-c", FLOOR]))
        times["… + stock Lightning"].append(cpu_seconds([sys.executable, "-c", LIGHTNING]))
        times["hpcexp job"].append(job(args.run_dir))
    floor = statistics.median(times["torch + optimizer"][1:])
    for name, values in times.items():
        median = statistics.median(values[1:])
        print(f"{name:20} {median:6.2f} s CPU   {median / floor:5.2f} × torch")


def job(run_dir: Path) -> float:
    """A job on a copy of the plan."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(run_dir / "plan.yaml", directory)
        return cpu_seconds([sys.executable, "-m", "hpcexp.job", directory])


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
