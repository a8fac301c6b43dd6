"""The steps of a job on one rank: check, build, fit, test with the best weights, summarise."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden

from hpcexp.checks.durations import duration_of
from hpcexp.errors import ConfigError
from hpcexp.files.atomic import sha256, write_json
from hpcexp.media.active import recording
from hpcexp.media.recorder import Recorder
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_note
from hpcexp.runs.clock import boottime
from hpcexp.runs.journal import Journal
from hpcexp.targets.signature_check import check_targets
from hpcexp.train.checkpointing.best_and_last import Checkpointing
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint, weights_digest
from hpcexp.train.checkpointing.exact_resume import Resume
from hpcexp.train.checkpointing.monitor import check_monitor
from hpcexp.train.checkpointing.trial_save import TrialSave
from hpcexp.train.data.adapters.module import check_makes_no_loaders
from hpcexp.train.data.adapters.weights import BatchWeights
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.engine.builders import checkable, make_callbacks, make_data, make_module, with_facts
from hpcexp.train.engine.ending import Ending
from hpcexp.train.engine.initial_weights import load_initial
from hpcexp.train.engine.interrupts import Interrupts, Pruned, Signals
from hpcexp.train.engine.journal_logger import JournalLogger, run_id_of
from hpcexp.train.engine.progress import ProgressReporter
from hpcexp.train.engine.pruning import OBJECTIVE, Pruning, PruningQuery
from hpcexp.train.engine.quick_log import recording_steps
from hpcexp.train.engine.step_limit import StepLimit, StepLimitReached
from hpcexp.train.engine.step_recorder import StepRecorder
from hpcexp.train.engine.trainer import make_trainer
from hpcexp.train.engine.user_mlflow import logging_to_own_run
from hpcexp.train.parallel.process_group import join, leave, world_size
from hpcexp.train.parallel.strategies import Ddp
from hpcexp.train.runtime.fast_hooks import FastCallback
from hpcexp.train.runtime.hyperparameters import accept_any_hyperparameters
from hpcexp.train.runtime.rank import Rank
from hpcexp.train.runtime.seeds import seed_everything, seed_rank
from hpcexp.train.runtime.steps import steps_done
from hpcexp.train.runtime.weights import load_whole_weights, whole_weights
from hpcexp.train.tasks.loss_log import LossLog
from hpcexp.train.tasks.module import TaskModule, network_of
from hpcexp.train.tasks.planning import metric_of


class Clock(FastCallback):
    """When the first step was done, and how long training took."""

    def __init__(self, started: float) -> None:
        """`started`: the beginning of the job in unix seconds."""
        self._began = boottime() - max(0.0, time.time() - started)
        self.until_first_step_s: float | None = None
        self.fit_s: float | None = None
        self._fit_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the beginning."""
        self._fit_at = boottime()

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the first step only: Lightning skips a hook that is None."""
        self.until_first_step_s = boottime() - self._began
        self.on_train_batch_end = None  # type: ignore[method-assign,assignment]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the end."""
        self.fit_s = boottime() - self._fit_at


def train(
    plan: Plan,
    run: RunDir,
    rank: Rank,
    signals: Signals,
    *,
    started: float,
    progress_fd: int | None = None,
    pruning: PruningQuery | None = None,
    last_step: int | None = None,
) -> dict[str, Any]:
    """Train and test on this rank; the summary, which rank 0 also writes. ConfigError before the first step.

    Pruned when the search that `pruning` asks ends the trial, and StepLimitReached after `last_step`: both after a
    summary without a test.
    """
    if problems := check_targets(checkable(plan)):
        raise ConfigError(problems)
    note = read_note(run.last)
    journal = Journal(run.journal, redone_from=(note and note.step) or 0) if rank.rank == 0 else None
    media = Recorder(run, rank.rank, lambda: 0, journal)
    try:
        run_id = run_id_of(run.path)
        with recording(media), logging_to_own_run(media, plan, run_id):
            clock = Clock(started)
            return _train(plan, run, rank, signals, media, clock, progress_fd, pruning, last_step=last_step)
    finally:
        if journal is not None:
            journal.close()


def _train(
    plan: Plan,
    run: RunDir,
    rank: Rank,
    signals: Signals,
    media: Recorder,
    clock: Clock,
    progress_fd: int | None,
    pruning: PruningQuery | None,
    *,
    last_step: int | None,
) -> dict[str, Any]:
    seed, journal = plan.settings.seed, media.journal
    if rank.world_size > 1:
        join(plan, rank)
    seed_everything(seed)
    accept_any_hyperparameters()
    data = make_data(plan, rank)
    plan = with_facts(plan, data)
    losses = LossLog(journal, plan.settings.trainer.log_every_n_steps)
    module = make_module(plan, journal, losses)
    check_makes_no_loaders(module)
    _check_metrics(plan, module, pruning)
    _initialise(plan, run, module, rank)
    seed_rank(seed, rank.rank)
    if isinstance(module, TaskModule):
        module.plain_batches = isinstance(data, SourceData)
    checkpointing = Checkpointing(plan, run, losses, write=rank.rank == 0)
    ending = _ending(plan, module)
    interrupts = Interrupts(signals, checkpointing, ending, rank=rank.rank)
    reporting = [*_reporting(plan, rank, interrupts, losses, progress_fd, pruning)]
    recorder = StepRecorder(losses, fills=not isinstance(module, TaskModule))
    callbacks = [recorder, ending, *make_callbacks(plan, run, checkpointing), interrupts, clock, *reporting]
    if rank.world_size > 1 and not isinstance(data, SourceData):
        callbacks.append(BatchWeights(losses.weigh))
    adopted = bool(plan.settings.run.resume_from)
    if last_step is not None:
        callbacks.append(StepLimit(last_step, losses))
    callbacks.append(TrialSave())
    callbacks.append(Resume(lambda: checkpointing.best.step, plan.signature, seed, adopted=adopted))
    logger = JournalLogger(journal, media, plan.experiment, plan.name, run.path)
    trainer = make_trainer(plan, run, callbacks=callbacks, logger=logger)
    if isinstance(trainer.strategy, Ddp):
        trainer.strategy.is_following = bool(plan.settings.callbacks) or not isinstance(module, TaskModule)
    media.step = lambda: steps_done(trainer) or trainer.global_step
    progress = [callback.after_batch for callback in reporting if isinstance(callback, ProgressReporter)]
    with recording_steps(trainer, recorder, [*progress, ending.after_batch, interrupts.after_batch]):
        try:
            trainer.fit(module, datamodule=data, ckpt_path=run.last if run.last.is_file() else None, weights_only=True)
        except (Pruned, StepLimitReached) as e:
            ended: dict[str, Any] = {"pruned": e.epoch} if isinstance(e, Pruned) else {"ended_at": last_step}
            _end(rank, run, {**_summary(plan, run, trainer, checkpointing, losses, clock), "test": {}, **ended})
            raise
        if checkpointing.best.exists:
            load_whole_weights(trainer, read_checkpoint(run.best)["state_dict"])
        tested = {} if plan.data and not plan.data.num_test else _test(trainer, module, data)
    digest = weights_digest(whole_weights(trainer))
    summary = {**_summary(plan, run, trainer, checkpointing, losses, clock), "weights_sha256": digest, "test": tested}
    if rank.rank == 0 and isinstance(module, TaskModule) and "confusion" in module.tables and plan.data is not None:
        matrix = module.tables["confusion"].tolist()
        write_json(run.confusion, {"labels": list(plan.data.class_names), "matrix": matrix})
    _end(rank, run, summary)
    return summary


def _initialise(plan: Plan, run: RunDir, module: pl.LightningModule, rank: Rank) -> None:
    """Put the weights that `model.init_from` names into the model of a run that does not resume."""
    if plan.initial_weights is None or run.last.is_file():
        return
    loaded = load_initial(network_of(module), plan.initial_weights, plan.settings.model)
    if rank.rank == 0:
        print(loaded, file=sys.stderr)


def _ending(plan: Plan, module: pl.LightningModule) -> Ending:
    """The limits that Lightning does not know or counts otherwise; it counts those of hpcexp's own module as we do."""
    trainer = plan.settings.trainer
    steps, duration = None if isinstance(module, TaskModule) else trainer.max_steps, duration_of(trainer)
    if duration is None:
        return Ending(steps=steps)
    return Ending(steps=steps, tokens=duration.tokens, seconds=duration.seconds)


def _check_metrics(plan: Plan, module: pl.LightningModule, pruning: PruningQuery | None) -> None:
    if not isinstance(module, TaskModule):
        return
    check_monitor(metric_of(plan.settings.trainer.monitor), module.monitors())
    if pruning is not None:
        check_monitor(pruning.metric, module.monitors(), what=OBJECTIVE)


def _reporting(
    plan: Plan,
    rank: Rank,
    interrupts: Interrupts,
    losses: LossLog,
    progress_fd: int | None,
    pruning: PruningQuery | None,
) -> Iterator[pl.Callback]:
    """Callbacks that report to the supervisor."""
    if pruning is not None:
        yield Pruning(pruning, interrupts)
    if progress_fd is not None:
        steps, epochs = (plan.steps.total, plan.steps.epochs) if plan.steps else (None, None)
        total = epochs or plan.settings.trainer.max_epochs or 0
        yield ProgressReporter(progress_fd, total, steps, losses, rank=rank.rank)


def _end(rank: Rank, run: RunDir, summary: dict[str, Any]) -> None:
    """Write the summary, which marks the run as complete, and leave the process group."""
    if rank.rank == 0:
        write_json(run.summary, summary)
    if rank.world_size > 1:
        leave()


def _test(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
    """Test metrics of the module's weights; empty without test data or a test step."""
    if not (is_overridden("test_dataloader", data) and is_overridden("test_step", module)):
        return {}
    trainer.test(module, datamodule=data, verbose=False)
    values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test")}
    # The journal has those that are not finite; JSON cannot hold them.
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _summary(
    plan: Plan, run: RunDir, trainer: pl.Trainer, checkpointing: Checkpointing, losses: LossLog, clock: Clock
) -> dict[str, Any]:
    module = trainer.lightning_module
    best = {k: v for k, v in checkpointing.best.facts().items() if k != "signature"}
    if best and not math.isfinite(best["value"]):
        best["value"] = None  # JSON cannot hold it
    if run.best.is_file():
        best |= {
            "path": str(run.best.relative_to(run.path)),
            "sha256": sha256(run.best),
            "bytes": run.best.stat().st_size,
        }
    return {
        "epochs": trainer.current_epoch,
        "steps": steps_done(trainer),
        "best": best or None,
        "diverged": losses.diverged,
        "durations": {"until_first_step_s": clock.until_first_step_s, "fit_s": clock.fit_s},
        "num_params": sum(p.numel() for p in module.parameters()),
        "signature": plan.signature,
        "world_size": world_size(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch-lightning": version("pytorch-lightning"),
        },
    }
