"""Wall-clock time that training waits for a checkpoint of 500 MB, against writing and syncing the same bytes.

Ours is what a run does: plain data, fsync, rename, fsync of the directory. Asynchronous, which is the default, it waits
for the copy in host memory alone; the write is waited for outside of its time, and its buffers are there from the
checkpoint before. Lightning's default is the `TorchCheckpointIO` that `Trainer.save_checkpoint` uses; it leaves the
bytes to the page cache, so it is also timed with an fsync after it. Bytes that a way leaves unsynced are synced outside
its time, not at the next one's expense.

What the writing thread takes of training is the last line: wall-clock time of a small model's step, nearly all of it
Python, on one thread while a checkpoint is written, and while none is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, interleaved
from benchmarks.size import size

PAIRS = 5
GOAL = 1.3
STALL_GOAL = 0.15
MEGABYTES = size(500, 5)
TENSORS = 20
STEPS_S = size(0.5, 0.05)


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    import torch

    each = MEGABYTES * 1_000_000 // 4 // TENSORS
    checkpoint = {"state_dict": {f"layer.{i}": torch.randn(each) for i in range(TENSORS)}, "epoch": 3}
    return [*_waits(checkpoint, pairs, scratch), _step(checkpoint, pairs, scratch)]


def _waits(checkpoint: Mapping[str, Any], pairs: int, scratch: Path) -> list[Row]:
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

    from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
    from hpcexp.train.checkpointing.plain_data import plain

    content = os.urandom(1_000_000) * MEGABYTES
    stock = TorchCheckpointIO()
    ways = {
        "raw": _timed(lambda path: _write(path, content), scratch / "raw"),
        "stall": _stall(checkpoint, scratch / "async.ckpt"),
        "ours": _timed(lambda path: write_checkpoint(plain(checkpoint), path), scratch / "ours.ckpt"),
        "stock": _timed(lambda path: stock.save_checkpoint(dict(checkpoint), path), scratch / "stock.ckpt"),
        "synced": _timed(lambda path: _save_and_sync(stock, checkpoint, path), scratch / "synced.ckpt"),
    }
    taken = interleaved(ways, pairs)
    raw = taken["raw"]
    return [
        Row(
            f"stall of an asynchronous checkpoint of {MEGABYTES} MB / raw write + fsync",
            taken["stall"],
            raw,
            STALL_GOAL,
        ),
        Row(f"synchronous checkpoint of {MEGABYTES} MB / raw write + fsync", taken["ours"], raw, GOAL),
        Row("Lightning's default, fsync after it / raw write + fsync", taken["synced"], raw),
        Row("Lightning's default, not durable / raw write + fsync", taken["stock"], raw),
    ]


def _stall(checkpoint: Mapping[str, Any], path: Path) -> Callable[[], float]:
    """Seconds until training continues; the write is waited for after it."""
    from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
    from hpcexp.train.checkpointing.staging import Staging
    from hpcexp.train.checkpointing.writer import Writer

    staging, writer = Staging(), Writer()

    def run() -> float:
        began = time.perf_counter()
        writer.begin([partial(write_checkpoint, staging.copy(checkpoint), path)], background=True)
        seconds = time.perf_counter() - began
        writer.wait()
        if writer.errors:
            raise writer.errors[0]
        return seconds

    return run


def _step(checkpoint: Mapping[str, Any], pairs: int, scratch: Path) -> Row:
    """Seconds of a step while a checkpoint is being written, and while none is."""
    import torch

    from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
    from hpcexp.train.checkpointing.writer import Writer

    model, inputs = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(8))), torch.randn(32, 64)
    optimizer, writer = torch.optim.Adam(model.parameters(), fused=True), Writer()

    def steps(goes_on: Callable[[], bool]) -> float:
        began, number = time.perf_counter(), 0
        while goes_on():
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            number += 1
        return (time.perf_counter() - began) / number

    def alone() -> float:
        until = time.perf_counter() + STEPS_S
        return steps(lambda: time.perf_counter() < until)

    def beside() -> float:
        writer.begin([partial(write_checkpoint, checkpoint, scratch / "beside.ckpt")], background=True)
        return steps(lambda: writer.is_busy)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = interleaved({"beside": beside, "alone": alone}, pairs)
    finally:
        torch.set_num_threads(threads)
    return Row("a small step while a checkpoint is written / while none is", taken["beside"], taken["alone"])


def _timed(way: Callable[[Path], None], path: Path) -> Callable[[], float]:
    """Seconds of `way(path)` over an earlier file of that name, as a run's checkpoints are."""

    def run() -> float:
        began = time.perf_counter()
        way(path)
        seconds = time.perf_counter() - began
        _sync(path)
        return seconds

    return run


def _write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _save_and_sync(stock: Any, checkpoint: Mapping[str, Any], path: Path) -> None:
    stock.save_checkpoint(dict(checkpoint), path)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
