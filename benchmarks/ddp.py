"""Wall-clock time of two ranks on the CPU: a step of theirs, and how long they take to their first.

A step (`benchmarks.ddp_ranks`): both ranks do every way in turn, in the same two processes of one thread each, over the
same resident tensors of CIFAR's shape in the same order. `hpcexp` is a job's rank with all that belongs to it. `plain`
is DistributedDataParallel in a loop of five lines, with the same fused optimizer and `gradient_as_bucket_view`.
`compute + all-reduce` is that loop without DDP, on both ranks at once, and one `all_reduce` of all gradients in a flat
tensor: what nothing that is overlapped could be slower than. Lightning's own DDP has a DataLoader and plain Adam.

To the first batch: from the start of the whole command `hpcexp train hardware.devices=2` to the moment when the last
rank has done its first step, against the same command on one rank; and Lightning's own launcher against itself.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.ends import STEPS, WINDOW, read
from benchmarks.measure import Row, cpu_seconds, interleaved
from benchmarks.size import size

PAIRS = 3
PLAIN_GOAL, CEILING_GOAL, FIRST_GOAL = 1.02, 1.17, 1.2
"""A speed of at least 0.98 of plain DDP's, and of 0.85 of compute and all-reduce one after the other."""

RANKS = 2
BATCH = 64
"""Samples of a step on each rank."""
TWO_RANKS = (
    *("tracking=off", "hardware=cpu", f"hardware.devices={RANKS}", "hardware.threads_per_rank=1", "run.root=."),
    *("data=synthetic", f"data.global_batch_size={RANKS * BATCH}", f"data.num_train={RANKS * BATCH * STEPS}"),
    *("scheduler=constant", "trainer.max_epochs=1", f"trainer.log_every_n_steps={WINDOW}"),
    "callbacks.stopwatch._target_=benchmarks.stopwatch.Stopwatch",
)
MODELS = {
    "CNN of 0.4 M parameters": ("model=cnn", "model.channels=[16,32,64,128,256]"),
    **size({"MLP of 10 M parameters": ("model=mlp", "model.hidden=[2048,1800]")}, {}),
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}")

ONE_STEP = ("trainer.max_steps=1", "hardware=cpu")
OURS = (
    *("-m", "hpcexp", "train", *ONE_STEP, "tracking=off", "hardware.threads_per_rank=1"),
    "callbacks.stopwatch._target_=benchmarks.stopwatch.Stopwatch",
)
STOCK = ("-m", "benchmarks.stock_ddp", *ONE_STEP, "hydra/output=default")


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    steps = [row for name, model in MODELS.items() for row in _steps(name, model, pairs, scratch)]
    return [*steps, *_first_batch(pairs, scratch)]


def _steps(name: str, model: Sequence[str], pairs: int, scratch: Path) -> list[Row]:
    from hpcexp.compose.composer import Composer
    from hpcexp.plan import save_plan
    from hpcexp.planner import prepare

    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        plan = prepare(Composer(scratch).compose([*TWO_RANKS, *model]), scratch, ["hpcexp", "train"])
        save_plan(plan, Path(directory, "plan.yaml"))
        cpu_seconds([*TORCHRUN, "-m", "benchmarks.ddp_ranks", str(pairs), directory], Path(directory))
        taken: dict[str, list[float]] = json.loads(Path(directory, "taken.json").read_text())
    ceiling = [sum(both) for both in zip(taken["compute"], taken["all-reduce"], strict=True)]
    step = f"two ranks, step of a {name}"
    return [
        Row(f"{step} / plain DDP", taken["ours"], taken["plain"], PLAIN_GOAL),
        Row(f"{step} / compute + all-reduce", taken["ours"], ceiling, CEILING_GOAL),
        Row(f"{step}, stock Lightning, nothing logged / plain DDP", taken["stock"], taken["plain"]),
    ]


def _first_batch(pairs: int, scratch: Path) -> list[Row]:
    ways: dict[str, Callable[[], float]] = {
        f"{name} {ranks}": partial(_until_first_batch, [*command, f"hardware.devices={ranks}"], ranks, scratch)
        for name, command in (("ours", OURS), ("stock", STOCK))
        for ranks in (1, RANKS)
    }
    taken = interleaved(ways, pairs)
    return [
        Row("`hpcexp train` to its first batch, two ranks / one", taken["ours 2"], taken["ours 1"], FIRST_GOAL),
        Row("Lightning's `ddp` to its first batch, two ranks / one", taken["stock 2"], taken["stock 1"]),
    ]


def _until_first_batch(command: Sequence[str], ranks: int, scratch: Path) -> float:
    """Seconds from the start of a command to the end of the slowest rank's first step."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        began = time.time()
        cpu_seconds(command, Path(directory))
        return max(read(Path(directory), rank)[0] for rank in range(ranks)) - began
