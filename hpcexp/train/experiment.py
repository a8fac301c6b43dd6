"""Everything a job trains with, built from its plan."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from hpcexp.build.check import targets
from hpcexp.build.instantiate import fill, instantiate, resolve, without
from hpcexp.data.source import Source
from hpcexp.errors import ConfigError
from hpcexp.plan import Batch, Plan
from hpcexp.record.journal import Journal
from hpcexp.schema import OWN_KEYS
from hpcexp.train.datamodule import SourceData
from hpcexp.train.ema import Ema
from hpcexp.train.keeper import Keeper
from hpcexp.train.loader import Shard
from hpcexp.train.metrics import METRICS
from hpcexp.train.module import Supervised
from hpcexp.train.optimizers import optimizers_of

ONE_BY_ONE = Batch(1, 1, 1)
"""For a Source whose plan says no batch."""


@dataclass(frozen=True)
class Rank:
    """Which rank this process is, and its device."""

    rank: int
    world_size: int
    device: torch.device


def make_module(plan: Plan, journal: Journal | None) -> pl.LightningModule:
    """The user's own LightningModule, or `Supervised` around the model."""
    config, facts = plan.config, plan.data
    known: dict[str, Any] = {}
    if facts is not None:
        known = {"in_shape": facts.input_shape, "num_classes": facts.num_classes or 1}
    model = instantiate(fill(config["model"], "model", **known), path="model")
    optimizers = partial(optimizers_of, config=config, total_steps=plan.steps.total if plan.steps else None)
    if config["trainer"]["compile"]:
        model.compile()
    if isinstance(model, pl.LightningModule):
        if type(model).configure_optimizers is pl.LightningModule.configure_optimizers:
            model.configure_optimizers = partial(optimizers, model)  # type: ignore[method-assign,assignment]
        return model
    task = config["task"]
    if unknown := [name for name in task["metrics"] if name not in METRICS]:
        raise ConfigError(f"task.metrics: {', '.join(unknown)} unknown.\nThere are: {', '.join(METRICS)}.")
    augment = config["data"].get("augment")
    return Supervised(
        model,
        instantiate(task["loss"], path="task.loss"),
        task["metrics"],
        optimizers,
        journal=journal,
        log_every=config["trainer"]["log_every_n_steps"],
        augment=instantiate(augment, path="data.augment") if augment else None,
        num_classes=facts.num_classes if facts else None,
    )


def make_data(plan: Plan, rank: Rank) -> pl.LightningDataModule:
    """The user's own LightningDataModule, or loaders of the Source."""
    config = plan.config
    node = without(config["data"], OWN_KEYS["data"])
    taken = inspect.signature(resolve(node["_target_"], "data")).parameters
    node |= {k: v for k, v in config["data"].items() if k in OWN_KEYS["data"] and k in taken}
    data = instantiate(fill(node, "data", batch_size=plan.batch and plan.batch.per_rank), path="data")
    if isinstance(data, pl.LightningDataModule):
        return data
    if not isinstance(data, Source):
        raise ConfigError(
            f"data._target_={node['_target_']} is neither a hpcexp.data.source.Source nor a LightningDataModule.\n"
            "Fix: let it inherit from one of them."
        )
    shard = Shard(rank.rank, rank.world_size)
    return SourceData(data, plan.batch or ONE_BY_ONE, config, shard=shard, device=rank.device)


def with_facts(plan: Plan, data: pl.LightningDataModule) -> Plan:
    """The plan with what its data set tells, where planning could not ask it without heavy imports."""
    if plan.data is None and isinstance(data, SourceData):
        return replace(plan, data=data.source.facts())
    return plan


def make_callbacks(plan: Plan, keeper: Keeper) -> list[pl.Callback]:
    """The keeper first: it must see the averaged weights that Ema takes out of the model after it."""
    trainer = plan.config["trainer"]
    callbacks: list[pl.Callback] = [keeper]
    if trainer.get("ema_decay") is not None:
        callbacks.append(Ema(trainer["ema_decay"]))
    if trainer.get("patience") is not None:
        settings = {k: trainer[k] for k in ("monitor", "mode", "patience", "min_delta")}
        callbacks.append(EarlyStopping(**settings, check_finite=False, verbose=False))
    own = plan.config.get("callbacks") or {}
    return callbacks + [
        instantiate(node, path=path) for path, node in targets(own, "callbacks") if path.count(".") == 1
    ]
