"""A synchronous checkpoint against writing and syncing the same bytes, and against Lightning's own way; interleaved.

python benchmarks/checkpoint.py [--mb 200] [--pairs 5] [--directory .]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path())
    args = parser.parse_args()
    from hpcexp.train.imports import lighten

    lighten()
    import torch
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

    from hpcexp.train.checkpoint import AtomicCheckpointIO

    checkpoint = {"state_dict": {f"layer.{i}": torch.randn(args.mb * 2**18 // 16) for i in range(16)}, "epoch": 3}
    content = bytes(os.urandom(2**20)) * args.mb
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        path = Path(directory)
        ways: dict[str, Callable[[], None]] = {
            "raw write + fsync": lambda: write(path / "raw", content),
            "hpcexp": lambda: AtomicCheckpointIO().save_checkpoint(checkpoint, path / "ours.ckpt"),
            "Lightning, no fsync": lambda: TorchCheckpointIO().save_checkpoint(checkpoint, path / "stock.ckpt"),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.pairs + 1):
            for name, way in ways.items():
                times[name].append(seconds(way))
    raw = statistics.median(times["raw write + fsync"][1:])
    for name, all_of_it in times.items():
        median = statistics.median(all_of_it[1:])
        print(f"{name:20} {median * 1e3:8.0f} ms   {median / raw:5.2f} × raw")


def write(path: Path, content: bytes) -> None:
    """The floor: the bytes, on the disk."""
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())


def seconds(way: Callable[[], None]) -> float:
    """Wall-clock time of a call."""
    before = time.perf_counter()
    way()
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
