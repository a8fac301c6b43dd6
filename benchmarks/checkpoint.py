"""Wall-clock time of a synchronous checkpoint of 500 MB, against writing and syncing the same bytes.

Ours is what a run does: plain data, fsync, rename, fsync of the directory. Lightning's default is the
`TorchCheckpointIO` that `Trainer.save_checkpoint` uses; it leaves the bytes to the page cache, so it is also timed with
an fsync after it. Bytes that a way leaves unsynced are synced outside its time, not at the next one's expense.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, interleaved

PAIRS = 5
GOAL = 1.3
MEGABYTES = 500
TENSORS = 20


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    import torch
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

    from hpcexp.train.checkpoint import AtomicCheckpointIO

    each = MEGABYTES * 1_000_000 // 4 // TENSORS
    checkpoint = {"state_dict": {f"layer.{i}": torch.randn(each) for i in range(TENSORS)}, "epoch": 3}
    content = os.urandom(1_000_000) * MEGABYTES
    stock = TorchCheckpointIO()
    ways = {
        "raw": _timed(lambda path: _write(path, content), scratch / "raw"),
        "ours": _timed(lambda path: AtomicCheckpointIO().save_checkpoint(checkpoint, path), scratch / "ours.ckpt"),
        "stock": _timed(lambda path: stock.save_checkpoint(checkpoint, path), scratch / "stock.ckpt"),
        "synced": _timed(lambda path: _save_and_sync(stock, checkpoint, path), scratch / "synced.ckpt"),
    }
    taken = interleaved(ways, pairs)
    raw = taken["raw"]
    return [
        Row("checkpoint of 500 MB / raw write + fsync", taken["ours"], raw, GOAL),
        Row("Lightning's default, fsync after it / raw write + fsync", taken["synced"], raw),
        Row("Lightning's default, not durable / raw write + fsync", taken["stock"], raw),
    ]


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


def _save_and_sync(stock: Any, checkpoint: dict[str, Any], path: Path) -> None:
    stock.save_checkpoint(checkpoint, path)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
