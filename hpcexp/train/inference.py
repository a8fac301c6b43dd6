"""A trained model out of its run directory: evaluated again, asked, or handed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate

from hpcexp.data.source import Source, Split
from hpcexp.errors import DataError, RunError
from hpcexp.media.active import recording
from hpcexp.media.recorder import Recorder
from hpcexp.plan import Plan, Topology, load_whole
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.engine.builders import make_data, make_module, with_facts
from hpcexp.train.engine.journal_logger import JournalLogger
from hpcexp.train.engine.trainer import make_trainer
from hpcexp.train.runtime.hyperparameters import accept_any_hyperparameters
from hpcexp.train.runtime.rank import Rank
from hpcexp.train.tasks.inputs import inputs_of
from hpcexp.train.tasks.module import TaskModule, network_of
from hpcexp.train.tasks.outputs import as_predictions, class_predictions
from hpcexp.train.tasks.task import Prediction

PREDICT_BATCH = 256


@dataclass(frozen=True)
class Trained:
    """The best weights of a run, in their module, ready to evaluate on the CPU."""

    run: RunDir
    plan: Plan
    module: pl.LightningModule
    data: pl.LightningDataModule

    @property
    def source(self) -> Source:
        """The run's data set; RunError where it is a LightningDataModule, which cannot read a single file."""
        if not isinstance(self.data, SourceData):
            raise RunError(
                f"{self.plan.experiment}/{self.plan.name} was trained on data of its own LightningDataModule, which "
                "does not say how a file becomes an input.\nFix: a hpcexp.data.source.Source with `read`."
            )
        return self.data.source

    @property
    def network(self) -> nn.Module:
        """The model itself, without the training around it."""
        return network_of(self.module)


def load_trained(run: RunDir) -> Trained:
    """The run's best checkpoint in a module built as its plan says; RunError where there is none."""
    plan = load_whole(run)
    alone = Topology("cpu", (0,), 1, plan.topology.threads_per_rank, "single", None)
    trainer = {**vars(plan.settings.trainer), "compile": False, "profiler": None}
    plan = replace(plan, topology=alone, config={**plan.config, "trainer": trainer})
    weights = read_checkpoint(run.best)["state_dict"]
    accept_any_hyperparameters()
    data = make_data(plan, Rank(0, 1, torch.device("cpu")))
    plan = with_facts(plan, data)
    module = make_module(plan, None)
    module.load_state_dict(weights)
    if isinstance(module, TaskModule):
        module.plain_batches = isinstance(data, SourceData)
    return Trained(run, plan, module.eval(), data)


def evaluate(trained: Trained, split: str) -> dict[str, float]:
    """Metrics of the best weights on a split (`val` or `test`)."""
    plan, unrecorded = trained.plan, Recorder(None, 0, lambda: 0)
    logger = JournalLogger(None, unrecorded, plan.experiment, plan.name, trained.run.path)
    trainer = make_trainer(plan, trained.run, callbacks=[], logger=logger)
    pass_over = trainer.test if split == "test" else trainer.validate
    with recording(unrecorded):
        pass_over(trained.module, datamodule=trained.data, verbose=False)
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(split)}


def predict(trained: Trained, files: Sequence[Path]) -> Iterator[Prediction]:
    """A prediction for each file. DataError names every file that cannot be read, before the first answer."""
    samples, problems = [], []
    for file in files:
        try:
            samples.append(trained.source.read(file))
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    with torch.inference_mode():
        for batch in _batches(trained.source, samples):
            yield from _predictions(trained, batch)


def predict_split(trained: Trained, split: Split) -> Iterator[Prediction]:
    """A prediction for each sample of a split, in its order."""
    with torch.inference_mode():
        for batch in split_batches(trained, split):
            module = trained.module
            yield from _predictions(trained, module.task.inputs(batch) if isinstance(module, TaskModule) else batch)


def split_batches(trained: Trained, split: Split) -> Iterator[Any]:
    """Batches of a split, in its order, as the model's steps get them; RunError where the data has none."""
    data = trained.data
    if not isinstance(data, SourceData):
        data.prepare_data()
        data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    if not is_overridden(f"{split}_dataloader", data):
        raise RunError(f"The data has no {split}_dataloader.\nFix: another --split.")
    loaders: Any = CombinedLoader(getattr(data, f"{split}_dataloader")(), "sequential")
    for batch, _, _ in iter(loaders):
        yield trained.module._apply_batch_transfer_handler(batch, torch.device("cpu"), 0)


def _predictions(trained: Trained, batch: Any) -> Sequence[Prediction]:
    """As the task or the module's own `predict_step` says it; otherwise the outputs as numbers."""
    module = trained.module
    if isinstance(module, TaskModule):
        return module.task.predict(module.model, batch)
    if is_overridden("predict_step", module):
        return as_predictions(module.predict_step(batch, 0))
    inputs = inputs_of(module, batch)
    outputs = module(*inputs.positional, **inputs.named)
    names = trained.plan.data.class_names if trained.plan.data else ()
    if names and isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] == len(names):
        return class_predictions(outputs, names)
    return as_predictions(outputs)


def _batches(source: Source, samples: Sequence[Any]) -> Iterator[Any]:
    """Samples in batches; each alone where their shapes differ, as padding would be predicted, too."""
    size = PREDICT_BATCH if len({_shapes(sample) for sample in samples}) == 1 else 1
    collate = source.collate if source.collates else default_collate
    for start in range(0, len(samples), size):
        yield collate(list(samples[start : start + size]))


def _shapes(sample: Any) -> tuple[Any, ...]:
    return tuple(getattr(leaf, "shape", None) for leaf in tree_leaves(sample))
