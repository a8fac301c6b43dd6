"""Everything a job trains with, built from its plan."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from hpcexp.checks.batch import steps
from hpcexp.checks.callbacks import REFUSED, refusal
from hpcexp.checks.data import split_problems
from hpcexp.compose.asked import asked_for
from hpcexp.data.folds import fold_problems, with_fold
from hpcexp.data.source import Source
from hpcexp.errors import ConfigError
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import Journal
from hpcexp.schema.keys import OWN_KEYS, TARGET
from hpcexp.schema.settings import ModelSettings, without
from hpcexp.targets.instantiate import fill, instantiate, parameters, resolve
from hpcexp.targets.lightning_module import NO_CALLBACK, ModuleSource
from hpcexp.targets.nodes import wrong_target
from hpcexp.targets.unused import decisions, unused_problem
from hpcexp.train.checkpointing.best_and_last import Checkpointing, Finish
from hpcexp.train.checkpointing.user_checkpoints import UserCheckpoints
from hpcexp.train.data.adapters.module import as_data_module
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.data.loaders import Shard
from hpcexp.train.optim.ema import Ema
from hpcexp.train.optim.optimizers import clip_gradients, optimizers_of
from hpcexp.train.optim.parameter_groups import freeze
from hpcexp.train.runtime.fast_hooks import quicken
from hpcexp.train.runtime.rank import Rank
from hpcexp.train.tasks.loss_log import LossLog
from hpcexp.train.tasks.module import TaskModule
from hpcexp.train.tasks.planning import make_task, without_metrics
from hpcexp.train.tasks.task import model_arguments


def make_module(plan: Plan, journal: Journal | None = None, losses: LossLog | None = None) -> pl.LightningModule:
    """The user's own LightningModule, or a `TaskModule` around the model."""
    settings, facts = plan.settings, plan.data
    known = _model_arguments(plan)
    own = _own_keys_taken(settings.model)
    node = {**settings.model.node, **{k: v for k, v in settings.model.given.items() if k in own}}
    model = instantiate(fill(node, "model", **known), path="model")
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"model._target_={settings.model.target} gives a {type(model).__name__}, which is no torch.nn.Module.\n"
            "Fix: let it inherit from torch.nn.Module or LightningModule."
        )
    if "freeze" not in own:
        freeze(model, settings.model.freeze)
    optimizers = partial(optimizers_of, settings=settings, steps=plan.steps)
    if settings.trainer.compile:
        model.compile()
    if isinstance(model, pl.LightningModule):
        quicken(model)
        if type(model).configure_optimizers is not pl.LightningModule.configure_optimizers:
            _check_unused(plan)
        else:
            model.configure_optimizers = partial(optimizers, model)  # type: ignore[method-assign,assignment]
        if type(model).configure_gradient_clipping is pl.LightningModule.configure_gradient_clipping:
            model.configure_gradient_clipping = partial(clip_gradients, model)  # type: ignore[method-assign]
        if plan.topology.strategy == "fsdp":
            from hpcexp.train.parallel.fsdp import check_shards_itself

            check_shards_itself(model)
        return model
    augment = settings.data.augment
    module = TaskModule(
        model,
        make_task(settings.task),
        optimizers,
        losses or LossLog(journal),
        data=facts,
        journal=journal,
        augment=instantiate(augment, path="data.augment") if augment else None,
        seed=settings.seed,
    )
    if plan.topology.strategy == "fsdp":
        from hpcexp.train.parallel.fsdp import shard_when_configured

        shard_when_configured(module, model, settings.trainer.precision)
    return module


def checkable(plan: Plan) -> dict[str, Any]:
    """The configuration with what the model is given of the data; without the model where only its data tells that."""
    config = without_metrics(plan.config)
    if plan.data is None:
        return without(config, {"model"})
    return {**config, "model": fill(plan.config["model"], "model", **_model_arguments(plan))}


def _own_keys_taken(model: ModelSettings) -> frozenset[str]:
    """Keys of hpcexp's in `model` that its target takes itself: they are its own then."""
    return OWN_KEYS["model"] & parameters(resolve(model.target, "model")).keys()


def _model_arguments(plan: Plan) -> dict[str, Any]:
    """What the model is given of the data: as the task says, which a LightningModule need not have."""
    if plan.data is None:
        return {}
    task = plan.settings.task
    return make_task(task).model_arguments(plan.data) if task.has_target else model_arguments(plan.data)


def _check_unused(plan: Plan) -> None:
    """ConfigError where an optimizer was asked for that the module does not use, and planning could not tell."""
    if plan.settings.optimizer.has_target:
        decision = decisions(ModuleSource(is_lightning=True, configures_optimizers=True), {})[-1]
        asked = asked_for(decision.paths, plan.overrides, plan.choices, Path(plan.lineage["project"]))
        target = plan.settings.model.target
        if problems := [unused_problem(setting, place, decision, target) for setting, place in asked]:
            raise ConfigError(problems)


def make_data(plan: Plan, rank: Rank) -> pl.LightningDataModule:
    """Loaders of the Source, or what the user has, adapted."""
    settings, node = plan.settings, plan.settings.data.node
    target = resolve(settings.data.target, "data")
    taken = parameters(target)
    node |= {k: v for k, v in settings.data.given.items() if k in OWN_KEYS["data"] and k in taken}
    known: dict[str, Any] = {"batch_size": plan.batch.per_rank} if plan.batch else {}
    # A Source's own default stays: planning has read its facts with it.
    if not _is_source(target) or ("seed" in taken and taken["seed"].default is inspect.Parameter.empty):
        known["seed"] = settings.seed
    data = instantiate(fill(node, "data", **known), path="data")
    shard, share = Shard(rank.rank, rank.world_size), plan.topology.ranks_per_node
    if not isinstance(data, Source):
        return as_data_module(data, settings, plan.batch, shard)
    if plan.batch is None:
        raise ConfigError(
            f"data.global_batch_size is not set, and {settings.data.target} is read in batches.\n"
            "Fix: data.global_batch_size=64"
        )
    collate = make_task(settings.task).collate if settings.task.has_target else None
    return SourceData(
        data, plan.batch, settings, shard=shard, device=rank.device, ranks_per_node=share, collate=collate
    )


def with_facts(plan: Plan, data: pl.LightningDataModule) -> Plan:
    """The plan with what its data set tells, where planning could not ask it without heavy imports.

    ConfigError where that does not fit the task, the batch or the ranks: what planning says of other data sets.
    """
    if plan.data is not None or not isinstance(data, SourceData):
        return plan
    facts = data.source.facts()
    if problems := fold_problems(plan.settings.data, facts):
        raise ConfigError(problems)
    facts = with_fold(facts, plan.settings.data)
    planned, problems = steps(plan.settings, plan.batch, facts)
    task = plan.settings.task
    unfit = make_task(task).problems(facts) if task.has_target else []
    problems = [*problems, *unfit, *split_problems(plan.settings, facts, plan.topology.world_size)]
    if problems:
        raise ConfigError(problems)
    return replace(plan, data=facts, steps=planned)


def _is_source(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, Source)


def make_callbacks(plan: Plan, run: RunDir, checkpointing: Checkpointing) -> list[pl.Callback]:
    """Checkpointing first: it must see the averaged weights that Ema takes out of the model after it."""
    trainer = plan.settings.trainer
    callbacks: list[pl.Callback] = [checkpointing]
    if trainer.ema_decay is not None:
        callbacks.append(Ema(trainer.ema_decay))
    if trainer.patience is not None:
        stop = partial(EarlyStopping, trainer.monitor, mode=str(trainer.mode), patience=trainer.patience)
        callbacks.append(stop(min_delta=trainer.min_delta, check_finite=False, verbose=False))
    nodes = {f"callbacks.{name}": node for name, node in plan.settings.callbacks.items() if node is not None}
    dirpaths = [str(node["dirpath"]) for node in nodes.values() if Path(str(node.get("dirpath") or "")).is_absolute()]
    callbacks.append(UserCheckpoints(run, dirpaths))
    for path, node in nodes.items():
        callback = instantiate(node, path=path)
        if not isinstance(callback, pl.Callback):
            raise ConfigError(wrong_target(path, node[TARGET], NO_CALLBACK))
        for kind in type(callback).__mro__:
            if f"{kind.__module__}.{kind.__name__}" in REFUSED:
                raise ConfigError(refusal(path, f"{kind.__module__}.{kind.__name__}"))
        callbacks.append(callback)
    return [*callbacks, Finish(checkpointing)]
