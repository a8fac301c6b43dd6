"""A trained model out of its run directory: evaluated again, asked, or handed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hpcexp.data.source import SPLITS, Source
from hpcexp.errors import DataError, HpcexpError, RunError
from hpcexp.plan import Plan, Topology, load_whole
from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.engine.builders import make_data, make_module, with_facts
from hpcexp.train.engine.trainer import make_trainer
from hpcexp.train.runtime.rank import Rank
from hpcexp.train.tasks.supervised import Supervised

Format = Literal["torch", "torchscript"]
PREDICT_BATCH = 256
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file."""

    file: Path
    label: str | None
    """The likeliest class; None for regression."""
    probability: float | None
    values: tuple[float, ...]
    """Probability of each class, or the predicted values."""


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
        return self.module.model if isinstance(self.module, Supervised) else self.module


def load_trained(run: RunDir) -> Trained:
    """The run's best checkpoint in a module built as its plan says; RunError where there is none."""
    plan = load_whole(run)
    alone = Topology("cpu", (0,), 1, plan.topology.threads_per_rank, "single", None)
    trainer = {**vars(plan.settings.trainer), "compile": False, "profiler": None}
    plan = replace(plan, topology=alone, config={**plan.config, "trainer": trainer})
    weights = read_checkpoint(run.best)["state_dict"]
    data = make_data(plan, Rank(0, 1, torch.device("cpu")))
    plan = with_facts(plan, data)
    module = make_module(plan, None)
    module.load_state_dict(weights)
    if isinstance(module, Supervised):
        module.plain_batches = isinstance(data, SourceData)
    return Trained(run, plan, module.eval(), data)


def evaluate(trained: Trained, split: str) -> dict[str, float]:
    """Metrics of the best weights on a split (`val` or `test`)."""
    trainer = make_trainer(trained.plan, trained.run, callbacks=[], logger=False)
    pass_over = trainer.test if split == "test" else trainer.validate
    pass_over(trained.module, datamodule=trained.data, verbose=False)
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(split)}


def predict(trained: Trained, files: Sequence[Path]) -> Iterator[Prediction]:
    """What the model says of each file. DataError names every file that cannot be read, before the first answer."""
    inputs, problems = [], []
    for file in files:
        try:
            inputs.append(trained.source.read(file))
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    facts = trained.source.facts()
    with torch.inference_mode():
        for start in range(0, len(files), PREDICT_BATCH):
            outputs = trained.network(torch.stack(inputs[start : start + PREDICT_BATCH]))
            for file, output in zip(files[start:], outputs, strict=False):
                yield _prediction(file, output, facts.class_names)


def export(trained: Trained, form: Format, path: Path) -> None:
    """Write the model for use without hpcexp, and make sure that what was written gives the same outputs."""
    example = examples(trained)
    network = trained.network
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with torch.inference_mode():
            expected = network(example)
        again = _exported(network, example, path) if form == "torch" else _scripted(network, example, path)
    except Exception as e:  # torch raises nearly anything for a model that it cannot follow
        other = "torchscript" if form == "torch" else "torch"
        raise HpcexpError(
            f"The model cannot be exported as {form}: {type(e).__name__}: {str(e).splitlines()[0]}\n"
            f"Fix: --format {other}, or let forward() depend on shapes only."
        ) from e
    difference = (again - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise HpcexpError(f"What was exported gives outputs that differ from the model's by {difference:.3g}.")


def _exported(network: nn.Module, example: Tensor, path: Path) -> Tensor:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    torch.export.save(program, path)
    outputs: Tensor = torch.export.load(path).module()(example)
    return outputs


def _scripted(network: nn.Module, example: Tensor, path: Path) -> Tensor:
    with torch.inference_mode():
        traced = torch.jit.trace(network, example[:1], check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
        outputs: Tensor = torch.jit.load(path)(example)  # type: ignore[no-untyped-call]
    return outputs


def examples(trained: Trained) -> Tensor:
    """A few inputs, from the test data where there are any."""
    data: Any = trained.data
    if isinstance(data, SourceData):
        split = next(s for s in reversed(SPLITS) if len(data.source.load(s)))
        samples = data.source.load(split)
        return torch.stack([samples[i][0] for i in range(min(4, len(samples)))])
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    inputs: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
    return inputs[:4]


def _prediction(file: Path, output: Tensor, class_names: Sequence[str]) -> Prediction:
    if not class_names:
        return Prediction(file, None, None, tuple(output.flatten().tolist()))
    probabilities = output.float().softmax(-1)
    best = int(probabilities.argmax())
    return Prediction(file, class_names[best], float(probabilities[best]), tuple(probabilities.tolist()))
