"""What both ranks of `benchmarks.ddp` do: every way of training in turn, in one pair of processes.

`torchrun --nproc-per-node 2 -m benchmarks.ddp_ranks PAIRS DIRECTORY` finds `plan.yaml` in the directory; rank 0 leaves
`taken.json` there: seconds a step of each way in each round.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.ends import STEPS, read, step_s
from benchmarks.measure import interleaved
from benchmarks.stock import Classifier
from benchmarks.stock_ddp import trainer
from hpcexp.data.source import Tensors
from hpcexp.plan import Plan, load_plan
from hpcexp.rundir import RunDir
from hpcexp.targets.instantiate import fill, instantiate
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.data.loaders import DistributedBatchSampler, Shard
from hpcexp.train.engine.builders import make_data
from hpcexp.train.engine.fit import train
from hpcexp.train.engine.interrupts import Signals
from hpcexp.train.runtime.log_filters import quiet
from hpcexp.train.runtime.rank import Rank
from hpcexp.train.runtime.seeds import seed_everything
from hpcexp.train.tasks.task import model_arguments


def main() -> None:
    """Measure."""
    pairs, directory = int(sys.argv[1]), Path(sys.argv[2])
    quiet()
    torch.set_num_threads(1)
    plan, ports = load_plan(directory / "plan.yaml"), Ports()
    data = _data(plan)
    ways: dict[str, Callable[[], float]] = {
        "ours": _in_new_directory(partial(hpcexp_step, plan), directory / "ours"),
        "plain": partial(plain_step, plan, data),
        "stock": _in_new_directory(partial(stock_step, plan, data), directory / "stock"),
        "compute": partial(compute_step, plan, data),
        "all-reduce": partial(all_reduce, plan),
    }
    taken = interleaved({name: _meeting(way, ports) for name, way in ways.items()}, pairs)
    if not ports.rank:
        (directory / "taken.json").write_text(json.dumps(taken))


def hpcexp_step(plan: Plan, directory: Path) -> float:
    """A job's rank: everything recorded, the best weights held, signals agreed on by the ranks."""
    rank = _rank(plan)
    with Path(os.devnull).open("wb") as nowhere:
        train(plan, RunDir(directory), rank, Signals(), started=time.time(), progress_fd=nowhere.fileno())
    return step_s(read(directory, rank.rank))


def plain_step(plan: Plan, data: Tensors) -> float:
    """DistributedDataParallel as one writes it by hand: the same tensors, batches, optimizer and options of DDP."""
    with _group():
        model = _model(plan)
        return _loop(plan, data, model, DistributedDataParallel(model, gradient_as_bucket_view=True))


def compute_step(plan: Plan, data: Tensors) -> float:
    """The same without DDP: both ranks compute at once, each for itself."""
    with _group():
        model = _model(plan)
        dist.barrier()
        return _loop(plan, data, model, model)


def all_reduce(plan: Plan) -> float:
    """All gradients in one tensor."""
    with _group():
        flat = torch.zeros(sum(p.numel() for p in _model(plan).parameters()))
        ends = []
        for _ in range(STEPS):
            dist.all_reduce(flat)
            ends.append(time.time())
        return step_s(ends)


def stock_step(plan: Plan, data: Tensors, directory: Path) -> float:
    """Lightning's own DDP with a DataLoader and plain Adam, nothing logged."""
    assert plan.batch is not None
    module = Classifier(_model(plan), _loss(plan), plan.settings.optimizer.arguments["lr"])
    samples = TensorDataset(data.inputs, data.targets)
    batches = DataLoader(samples, plan.batch.per_rank, shuffle=True, drop_last=True)
    trainer(str(directory), plan.topology.world_size, STEPS).fit(module, batches)
    dist.destroy_process_group()
    return step_s(read(directory, int(os.environ["RANK"])))


class Ports:
    """A port for every measurement, so that no rank meets the group before; passed through torchrun's own store."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(address, port)  # type: ignore[attr-defined]
        self._numbers = count()
        # From here on rank 0 listens, as without torchrun.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"

    def next(self) -> str:
        """The same on both ranks."""
        key = f"port/{next(self._numbers)}"
        if not self.rank:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._store.set(key, str(free.getsockname()[1]))
        port: str = self._store.get(key).decode()
        return port


def _meeting(way: Callable[[], float], ports: Ports) -> Callable[[], float]:
    launched = dict(os.environ)

    def run() -> float:
        # Lightning takes WORLD_SIZE away when its Trainer ends.
        os.environ.update(launched, MASTER_PORT=ports.next())
        return way()

    return run


def _in_new_directory(way: Callable[[Path], float], directory: Path) -> Callable[[], float]:
    """Where `way` writes: a directory for each round, the same on both ranks."""
    numbers = count()

    def run() -> float:
        mine = directory / str(next(numbers))
        mine.mkdir(parents=True, exist_ok=True)
        return way(mine)

    return run


@contextmanager
def _group() -> Generator[None, None, None]:
    dist.init_process_group("gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _loop(plan: Plan, data: Tensors, model: nn.Module, forward: nn.Module) -> float:
    loss_of = _loss(plan)
    optimizer: torch.optim.Optimizer = instantiate(plan.settings.optimizer.node, model.parameters(), path="optimizer")
    ends = []
    for index in _order(plan).batches():
        inputs, targets = data.inputs.index_select(0, index), data.targets.index_select(0, index)
        optimizer.zero_grad()
        loss_of(forward(inputs), targets).backward()
        optimizer.step()
        ends.append(time.time())
    return step_s(ends)


def _rank(plan: Plan) -> Rank:
    return Rank(int(os.environ["RANK"]), plan.topology.world_size, torch.device("cpu"))


def _data(plan: Plan) -> Tensors:
    module = make_data(plan, _rank(plan))
    assert isinstance(module, SourceData)
    samples = module.source.load("train")
    assert isinstance(samples, Tensors)
    return samples


def _order(plan: Plan) -> DistributedBatchSampler:
    assert plan.batch is not None
    assert plan.data is not None
    assert plan.data.num_train is not None
    rank = _rank(plan)
    shard, seed = Shard(rank.rank, rank.world_size), plan.settings.seed
    return DistributedBatchSampler(plan.data.num_train, plan.batch.per_rank, shuffle=True, seed=seed, shard=shard)


def _model(plan: Plan) -> nn.Module:
    """With the initial weights that a job has."""
    assert plan.data is not None
    seed_everything(plan.settings.seed)
    known = model_arguments(plan.data)
    model: nn.Module = instantiate(fill(plan.settings.model.node, "model", **known), path="model")
    return model


def _loss(plan: Plan) -> Any:
    return instantiate(plan.settings.task.arguments["loss"], path="task.loss")


if __name__ == "__main__":
    main()
