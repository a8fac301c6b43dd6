"""CPU time of a training step: one whole `fit` on one thread, divided by its steps; all in one process, interleaved.

`hpcexp` is the composed experiment run by `hpcexp.train.engine.fit`, as a job does: a validation every epoch, every
step's loss and rate in the journal, best weights held, both checkpoints written and synced, signals heard, progress
down a pipe that another process reads. `bare` is optimizer, DataLoader(shuffle) and loop, and nothing else: no
validation, no record. The peers are stock Lightning over the same DataLoader, without validation and checkpoints.
Not counted for any: imports, reading the data, building the model; nor the sync process, a process of its own
(`benchmarks.sync`).

The default model shows what a step costs beside its arithmetic; `digits_cnn` with more samples in a batch what is left
of that at a step of more than 15 ms (where it takes less, no goal is set). There the bare loop has hpcexp's own fused
optimizer, neither augments, and hpcexp validates once, at the end: otherwise the ratio would tell of Adam and of
validation, not of the framework.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, interleaved, metered
from benchmarks.size import size
from hpcexp.plan import Plan

PAIRS = 5
GOAL, LONG_GOAL = 1.1, 1.03
LONG_STEP_S = 0.015

ONE_THREAD = ("tracking=off", "hardware=cpu", "hardware.threads_per_rank=1", "run.root=.")
METER = "callbacks.meter._target_=benchmarks.meter.Meter"
SHORT = size((), ("trainer.max_epochs=1",))
LONG = (
    *("experiment=digits_cnn", "data.augment=null", "data.global_batch_size=400"),
    *("trainer.max_epochs=20", "trainer.val_every_epochs=20"),
    *size((), ("trainer.max_epochs=1", "trainer.val_every_epochs=1")),
)


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning(is_rank=False)
    import torch

    torch.set_num_threads(1)
    return [*_short(pairs, scratch), *_long(pairs, scratch)]


def _short(pairs: int, scratch: Path) -> list[Row]:
    plan = plan_of(scratch, *SHORT)
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_step(plan),
        "ours": lambda: hpcexp_step(plan, scratch),
        "nothing logged": lambda: stock_step(plan, scratch),
    }
    ways |= {name: partial(stock_step, plan, scratch, make) for name, make in loggers(scratch).items()}
    taken = interleaved(ways, pairs)
    bare, ours = taken.pop("bare"), taken.pop("ours")
    peers = [Row(f"stock Lightning, {name} / bare loop", seconds, bare) for name, seconds in taken.items()]
    return [Row("step of `digits_mlp`, everything recorded / bare loop", ours, bare, GOAL), *peers]


def _long(pairs: int, scratch: Path) -> list[Row]:
    plan = plan_of(scratch, *LONG)
    ways = {"bare": lambda: bare_step(plan, own=True), "ours": lambda: hpcexp_step(plan, scratch)}
    taken = interleaved(ways, pairs)
    goal = LONG_GOAL if statistics.median(taken["bare"]) >= LONG_STEP_S else None
    return [Row("step of `digits_cnn`, batch 400, everything recorded / bare loop", taken["ours"], taken["bare"], goal)]


def bare_step(plan: Plan, *, own: bool = False) -> float:
    """Seconds of CPU a step of the plain loop, with plain Adam or with the plan's `own` optimizer."""
    import torch

    from benchmarks.stock import loader
    from hpcexp.targets.instantiate import instantiate

    settings = plan.settings
    model, loss_of = _model(plan), instantiate(settings.task.arguments["loss"], path="task.loss")
    batches, epochs = loader(_batch_size(plan)), settings.trainer.max_epochs
    adam = {"_target_": "torch.optim.Adam", "lr": settings.optimizer.arguments["lr"]}
    began: float = time.process_time()
    optimizer: torch.optim.Optimizer = instantiate(
        settings.optimizer.node if own else adam, model.parameters(), path="optimizer"
    )
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
    steps: int = epochs * len(batches)
    return (time.process_time() - began) / steps


def hpcexp_step(plan: Plan, scratch: Path) -> float:
    """Seconds of CPU a step of a job."""
    import torch

    from hpcexp.rundir import RunDir
    from hpcexp.train.engine.fit import train
    from hpcexp.train.engine.interrupts import Signals
    from hpcexp.train.runtime.rank import Rank

    rank = Rank(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=scratch) as directory, _drained_pipe() as pipe, _own_signals():
        train(plan, RunDir(Path(directory)), rank, Signals(), started=time.time(), progress_fd=pipe)
        return metered(Path(directory), "step_s")


def stock_step(plan: Plan, scratch: Path, make_logger: Callable[[Path], Any] | None = None) -> float:
    """Seconds of CPU a step of stock Lightning; with a logger every step's loss is logged."""
    from benchmarks.stock import Classifier, loader, trainer
    from hpcexp.targets.instantiate import instantiate

    loss = instantiate(plan.settings.task.arguments["loss"], path="task.loss")
    module = Classifier(_model(plan), loss, plan.settings.optimizer.arguments["lr"], logs=make_logger is not None)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        logger = make_logger(Path(directory)) if make_logger else False
        batches = loader(_batch_size(plan))
        trainer(directory, plan.settings.trainer.max_epochs, logger=logger).fit(module, batches)
        return metered(Path(directory), "step_s")


def loggers(scratch: Path) -> dict[str, Callable[[Path], Any]]:
    """Lightning's own loggers."""
    import mlflow
    from pytorch_lightning.loggers import CSVLogger, MLFlowLogger

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    store = f"sqlite:///{scratch / 'stock.db'}"
    mlflow.MlflowClient(store).create_experiment("stock")
    return {
        "`self.log` + CSVLogger every step": lambda directory: CSVLogger(str(directory)),
        "`self.log` + MLFlowLogger (SQLite) every step": lambda _: MLFlowLogger("stock", tracking_uri=store),
    }


def plan_of(scratch: Path, *overrides: str) -> Plan:
    """The plan of a project, on one thread, whose job takes its CPU times."""
    from hpcexp.compose.composer import Composer
    from hpcexp.planner import prepare

    return prepare(Composer(scratch).compose([*overrides, *ONE_THREAD, METER]), scratch, ["hpcexp", "train"])


def _batch_size(plan: Plan) -> int:
    assert plan.batch is not None
    return plan.batch.global_size


def _model(plan: Plan) -> Any:
    from hpcexp.targets.instantiate import fill, instantiate
    from hpcexp.train.tasks.task import model_arguments

    assert plan.data is not None
    known = model_arguments(plan.data)
    return instantiate(fill(plan.settings.model.node, "model", **known), path="model")


@contextmanager
def _drained_pipe() -> Generator[int, None, None]:
    """The writing end of a pipe that another process reads."""
    read, write = os.pipe()
    with subprocess.Popen(["cat"], stdin=read, stdout=subprocess.DEVNULL):
        os.close(read)
        try:
            yield write
        finally:
            os.close(write)


@contextmanager
def _own_signals() -> Generator[None, None, None]:
    """Undo afterwards that a job takes SIGINT and SIGTERM for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
