"""CPU time of a step of a user's LightningModule: one whole `fit` on one thread, divided by its steps; interleaved.

`hpcexp` trains the module as a job does: every step's loss and rate and what the module logs with `self.log` in the
journal, best weights held, both checkpoints written, signals heard, progress down a pipe. Lightning trains the same
module over the same DataLoaders, with a validation every epoch as well, and with nothing logged and saved; in the other
lines it logs one value every step to its own loggers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, interleaved, metered
from benchmarks.size import size
from benchmarks.step import hpcexp_step, loggers, plan_of
from hpcexp.plan import Plan

PAIRS = 5
GOAL = 1.03
EPOCHS = size(30, 1)
NETWORK = {"_target_": "hpcexp.models.mlp.MLP", "in_shape": [1, 8, 8], "num_classes": 10, "hidden": [256, 256]}
MODEL = "_target_: benchmarks.own_classes.Logging\nloss: {_target_: torch.nn.CrossEntropyLoss}\nlr: 0.003\n"


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines."""
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning(is_rank=False)
    import torch

    torch.set_num_threads(1)
    plans = {f"{logs} × `self.log`": _plan(scratch, logs) for logs in (0, 1, 3)}
    ways: dict[str, Callable[[], float]] = {"nothing logged": lambda: _lightning_step(scratch)}
    ways |= {name: partial(hpcexp_step, plan, scratch) for name, plan in plans.items()}
    ways |= {name: partial(_lightning_step, scratch, make) for name, make in loggers(scratch).items()}
    taken = interleaved(ways, pairs)
    bare = taken.pop("nothing logged")
    ours = [
        Row(
            f"step of a user's module, {name}, everything recorded / Lightning, nothing logged", taken[name], bare, GOAL
        )
        for name in plans
    ]
    peers = [Row(f"Lightning, {name} / nothing logged", taken[name], bare) for name in taken if name not in plans]
    return [*ours, *peers]


def _plan(scratch: Path, logs: int) -> Plan:
    """The plan of the module that logs so many values."""
    project = scratch / str(logs)
    files = {"model": f"{MODEL}model: {NETWORK}\nlogs: {logs}\n", "data": "_target_: benchmarks.own_classes.Data\n"}
    for group, text in files.items():
        file = project / "conf" / group / "own.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
    length = f"trainer.max_epochs={EPOCHS}"
    return plan_of(project, "model=own", "data=own", "trainer.monitor=val/loss", "trainer.mode=min", length)


def _lightning_step(scratch: Path, make_logger: Callable[[Path], Any] | None = None) -> float:
    """Seconds of CPU a step of Lightning; with a logger every step's loss is logged."""
    from benchmarks.own_classes import Data, Logging, Silent
    from benchmarks.stock import trainer
    from hpcexp.targets.instantiate import instantiate

    kind, logs = (Silent, 0) if make_logger is None else (Logging, 1)
    loss = instantiate({"_target_": "torch.nn.CrossEntropyLoss"}, path="loss")
    module = kind(instantiate(NETWORK, path="model"), loss, lr=0.003, logs=logs)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        logger = make_logger(Path(directory)) if make_logger else False
        trainer(directory, EPOCHS, logger=logger).fit(module, datamodule=Data())
        return metered(Path(directory), "step_s")
