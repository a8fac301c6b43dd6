"""CPU time of a sweep's jobs before the first starts: composed, checked and planned, against Hydra only composing them.

Hydra's way is `load_sweep_config`, which its sweepers and launchers call for each job. It is timed on fewer jobs, as it
takes the same for each. Beside it: the whole command that finds a thousand jobs finished.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from hydra.types import RunMode

from benchmarks.measure import Row, cpu_seconds, interleaved
from benchmarks.size import size
from hpcexp.compose.composer import Composer
from hpcexp.compose.many import Many
from hpcexp.files.atomic import write_json
from hpcexp.memo import Once
from hpcexp.plan import Plan, save_plan
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir

PAIRS = 5
GOAL = 0.03
"""4 ms, where Hydra takes 136 ms."""
NUM_BY_HYDRA = size(20, 2)

UNTRACKED = "tracking=off"
RATES = [f"0.0{digit}" for digit in range(1, size(10, 2))] + ["0.1"]
VALUES = {"optimizer.lr": RATES, "model.dropout": RATES, "seed": range(size(10, 2))}
GROUPS = {"model": ["mlp", "cnn", "resnet", "vit"], "optimizer": ["adam", "adamw"], "seed": range(size(125, 1))}

Jobs = Sequence[list[str]]


def rows(pairs: int, scratch: Path) -> Iterator[Row]:
    """The table's lines."""
    composer, gc_was_on = Composer(scratch), gc.isenabled()
    gc.disable()  # as hpcexp plans
    jobs = _jobs(VALUES)
    yield _row(f"a job of {len(jobs):,} composed, checked and planned / composed by Hydra", composer, jobs, pairs)
    yield _row("the same, with eight choices of files among them", composer, _jobs(GROUPS), pairs)
    if gc_was_on:
        gc.enable()
    axes = [f"{key}={','.join(map(str, values))}" for key, values in VALUES.items()]
    for plan in _planned(composer, [[*job, UNTRACKED] for job in jobs]):
        _finish(plan)
    command = ["-m", "hpcexp", "train", "-m", *axes, UNTRACKED]
    whole = interleaved({"train": lambda: cpu_seconds(command, scratch)}, pairs)
    yield Row(f"`hpcexp train -m` of {len(jobs):,} finished jobs: nothing to do", whole["train"])


def _row(what: str, composer: Composer, jobs: Jobs, pairs: int) -> Row:
    master = composer.load([], RunMode.MULTIRUN)

    def ours() -> float:
        began = time.process_time()
        _planned(composer, jobs)
        return (time.process_time() - began) / len(jobs)

    def by_hydra() -> float:
        few = jobs[:: len(jobs) // NUM_BY_HYDRA]
        began = time.process_time()
        for job in few:
            composer.loader.load_sweep_config(master, job)
        return (time.process_time() - began) / len(few)

    taken = interleaved({"ours": ours, "hydra": by_hydra}, pairs)
    return Row(what, taken["ours"], taken["hydra"], GOAL)


def _jobs(axes: dict[str, Sequence[object]]) -> Jobs:
    return [[f"{key}={value}" for key, value in zip(axes, values, strict=True)] for values in product(*axes.values())]


def _planned(composer: Composer, jobs: Jobs) -> list[Plan]:
    many, once = Many(composer), Once()
    return [prepare(many.compose(job), composer.project, ["hpcexp", "train"], once=once) for job in jobs]


def _finish(plan: Plan) -> None:
    """Leave behind what a finished run has, as far as planning looks at it."""
    run = RunDir(Path(plan.run_dir))
    save_plan(plan, run.plan)
    write_json(run.status, {"state": "finished"})
