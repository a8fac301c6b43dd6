"""From the global batch to what each rank does in a step, and how many steps there are."""

from __future__ import annotations

import math

from hpcexp.data_spec import DataSpec
from hpcexp.plan import Batch, Steps, Topology
from hpcexp.schema.keys import Trainer
from hpcexp.schema.settings import Settings


def batch(settings: Settings, topology: Topology) -> tuple[Batch | None, list[str]]:
    """How the global batch is divided; None without a problem where the configuration names no batch size."""
    size = settings.data.global_batch_size
    if size is None:
        return None, []
    accumulate, ranks = settings.trainer.accumulate_grad_batches, topology.world_size
    share = ranks * accumulate
    if size % share:
        nearest = max(share, size - size % share)
        parts = [f"hardware.devices={topology.ranks_per_node}"] if ranks > 1 else []
        parts += [f"hardware.num_nodes={topology.num_nodes}"] if topology.num_nodes > 1 else []
        parts += [f"trainer.accumulate_grad_batches={accumulate}"] if accumulate > 1 else []
        over = f"{ranks} ranks" if ranks > 1 else ""
        over += (" of " if over else "") + (f"{accumulate} accumulated batches" if accumulate > 1 else "")
        return None, [
            f"data.global_batch_size={size} does not divide over {over.removesuffix(' of ')} "
            f"({' × '.join(parts)}).\nEvery rank must see the same number of samples in each step.\n"
            f"Fix: data.global_batch_size={nearest}, or {nearest + share}."
        ]
    return Batch(size, size // share, accumulate), []


def limit_problems(trainer: Trainer) -> list[str]:
    """Shares of the batches that are more than all of them."""
    names = ("limit_train_batches", "limit_eval_batches")
    limits = {name: getattr(trainer, name) for name in names}
    return [
        f"trainer.{name}={limit}: with a point it is a share of the batches, at most 1.0.\n"
        f"Fix: trainer.{name}={max(1, int(limit))} for a number of batches."
        for name, limit in limits.items()
        if isinstance(limit, float) and limit > 1
    ]


def batches_of(limit: float | None, count: int) -> int | None:
    """How many of `count` batches a limit leaves: a number of them, or a share, which is at least one batch."""
    return max(1, int(limit * count)) if isinstance(limit, float) else limit


def steps(settings: Settings, batch: Batch | None, facts: DataSpec | None) -> tuple[Steps | None, list[str]]:
    """Steps of the whole training; None where the amount of data, or the end, is known to the job alone."""
    trainer = settings.trainer
    if batch is None or facts is None or facts.num_train is None:
        return None, []
    num_batches = facts.num_train // batch.global_size
    if num_batches == 0:
        return None, [
            f"data.global_batch_size={batch.global_size}, but there are only {facts.num_train} training samples: "
            f"an epoch would have no step.\nFix: data.global_batch_size={max(1, facts.num_train // 2)}"
        ]
    limits = [n for n in (batches_of(trainer.limit_train_batches, num_batches), trainer.overfit_batches) if n]
    per_epoch = min([num_batches, *limits])
    lengths = [per_epoch * trainer.max_epochs] if trainer.max_epochs else []
    lengths += [trainer.max_steps] if trainer.max_steps else []
    if not lengths:
        return None, []  # a duration that the job counts
    total = min(lengths)
    return Steps(per_epoch, total, math.ceil(total / per_epoch)), []
