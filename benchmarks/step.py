"""CPU time of a training step: hpcexp with all its recording against a bare PyTorch loop, interleaved in one process.

python benchmarks/step.py [--hidden 256 256] [--batch 64] [--epochs 20] [--pairs 5] [--threads 1]

`bare` is a loop over `DataLoader(batch, shuffle=True)` with plain Adam and nothing else. `hpcexp` is what a job does
between `trainer.fit` and its end: a validation every epoch, every step's loss and rate in the journal, best weights
kept, both checkpoints written at the end. Its time is divided by its training steps: all of that is in it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from hpcexp import schema
from hpcexp.data.digits import Digits
from hpcexp.plan import Batch, Plan, Steps, Topology
from hpcexp.rundir import RunDir


def main() -> None:
    """Print the medians and their ratio."""
    args = arguments()
    prepare(args.threads)
    bare, ours = [], []
    for _ in range(args.pairs + 1):
        bare.append(bare_step(args))
        ours.append(hpcexp_step(args))
    b, o = statistics.median(bare[1:]), statistics.median(ours[1:])
    ratios = [y / x for x, y in zip(bare[1:], ours[1:], strict=True)]
    print(f"bare    {b * 1e6:9.0f} µs a step")
    print(f"hpcexp  {o * 1e6:9.0f} µs a step")
    print(f"ratio   {statistics.median(ratios):9.3f}   (of pairs {min(ratios):.3f} to {max(ratios):.3f})")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def prepare(threads: int) -> None:
    """Import as a job does."""
    from hpcexp.train.imports import lighten

    lighten()
    import pytorch_lightning  # noqa: F401
    import torch

    from hpcexp.train.quiet import quiet

    quiet()
    torch.set_num_threads(threads)


def bare_step(args: argparse.Namespace) -> float:
    """Seconds of CPU a step of the plain loop."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from hpcexp.models.mlp import MLP

    data = Digits().load("train")
    loader = DataLoader(TensorDataset(data.inputs, data.targets), args.batch, shuffle=True, drop_last=True)
    model = MLP(data.inputs.shape[1:], 10, args.hidden)
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=1e-3), torch.nn.CrossEntropyLoss()
    before: float = time.process_time()
    for _ in range(args.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
    steps: int = args.epochs * len(loader)
    return (time.process_time() - before) / steps


def hpcexp_step(args: argparse.Namespace) -> float:
    """Seconds of CPU a step of a job."""
    import torch

    from hpcexp.record.journal import Journal
    from hpcexp.record.lightning import JournalLogger
    from hpcexp.train.control import Control, Signals
    from hpcexp.train.experiment import Rank, make_callbacks, make_data, make_module
    from hpcexp.train.keeper import Keeper
    from hpcexp.train.module import Supervised
    from hpcexp.train.trainer import make_trainer

    with tempfile.TemporaryDirectory() as directory:
        run = RunDir(Path(directory))
        plan = digits_plan(run, args)
        journal = Journal(run.journal)
        module = make_module(plan, journal)
        assert isinstance(module, Supervised)
        module.plain_batches = True
        data = make_data(plan, Rank(0, 1, torch.device("cpu")))
        keeper = Keeper(plan, run, write=True)
        callbacks = [*make_callbacks(plan, keeper), Control(Signals(), keeper, rank=0)]
        trainer = make_trainer(plan, run, callbacks=callbacks, logger=JournalLogger(journal, "bench", "step", run.path))
        before = time.process_time()
        trainer.fit(module, datamodule=data)
        spent = time.process_time() - before
        journal.close()
        steps: int = trainer.global_step
        return spent / steps


def digits_plan(run: RunDir, args: argparse.Namespace) -> Plan:
    """The plan of digits_mlp with the sizes asked for."""
    facts = Digits().facts()
    per_epoch = facts.num_train // args.batch
    trainer = {**asdict(schema.Trainer()), "max_epochs": args.epochs, "monitor": "val/acc", "mode": "max"}
    config = {
        "seed": 1,
        "data": {"_target_": "hpcexp.data.digits.Digits", "global_batch_size": args.batch},
        "model": {"_target_": "hpcexp.models.mlp.MLP", "hidden": args.hidden},
        "task": {"loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "metrics": ["acc"]},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "fused": True},
        "scheduler": {"_target_": "hpcexp.train.schedules.warmup_cosine", "interval": "step", "warmup": 0.05},
        "strategy": {"name": "auto"},
        "trainer": trainer,
        "checkpoint": asdict(schema.Checkpoint()),
        "callbacks": {},
    }
    return Plan(
        version=1,
        name="step",
        experiment="bench",
        run_dir=str(run.path),
        signature="",
        config=config,
        overrides=(),
        choices={},
        topology=Topology("cpu", (0,), 1, args.threads, "single", None),
        batch=Batch(args.batch, args.batch, 1),
        steps=Steps(per_epoch, per_epoch * args.epochs, args.epochs),
        data=facts,
        num_params=None,
        tracking_uri=None,
        lineage={},
        warnings=(),
    )


if __name__ == "__main__":
    main()
