"""Prediction and export of models that take more than a tensor and give more than a vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fitting import train_plan
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training_plans import digits_plan

from hpcexp.checks.batch import steps
from hpcexp.data.source import NamedTensors, Source, Split
from hpcexp.data_spec import DataSpec, TensorSpec, Values
from hpcexp.errors import ConfigError
from hpcexp.plan import Plan, save_plan
from hpcexp.rundir import RunDir
from hpcexp.train.export import examples, export
from hpcexp.train.inference import Trained, evaluate, load_trained, predict_split

SENTENCES = [
    {"tokens": torch.arange(6) % (3 + i % 4), "weight": torch.tensor(float(i)), "name": f"s{i}"} for i in range(24)
]


class OwnBatches(pl.LightningDataModule):
    """Batches with names, of which the model takes some."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        """Three batches."""
        return DataLoader(SENTENCES, batch_size=self.batch_size)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


class OwnTokens(pl.LightningModule):
    """A user's module: tokens and a weight to two outputs."""

    def __init__(self, says: str = "") -> None:
        super().__init__()
        self.embedding, self.head, self.says = nn.Embedding(8, 4), nn.Linear(4, 8), says

    def forward(self, tokens: Tensor, weight: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(tokens)
        return {"logits": self.head(hidden), "total": hidden.sum((1, 2)) * weight}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        outputs = self(batch["tokens"], batch["weight"])
        return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), batch["tokens"].flatten())

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch["name"]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("test/loss", self.training_step(batch, batch_idx), batch_size=len(batch["name"]))


class OwnPredictions(OwnTokens):
    """A predict_step that says it in words, one sample after the other."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Iterator[dict[str, Any]]:
        """The likeliest tokens."""
        for name, tokens in zip(
            batch["name"], self(batch["tokens"], batch["weight"])["logits"].argmax(-1), strict=True
        ):
            yield {"name": name, "tokens": tokens}


class Rectangles(Source):
    """Two inputs by name, in memory: a number each, and a picture that says nothing."""

    def facts(self) -> DataSpec:
        inputs = {"height": TensorSpec(()), "width": TensorSpec(()), "picture": TensorSpec((2, 2))}
        return DataSpec(64, 16, 16, inputs, Values((1,)), "rectangles")

    def problems(self) -> list[str]:
        return []

    def load(self, split: Split) -> NamedTensors:
        size = self.facts().num_samples[split] or 0
        sides = torch.rand(2, size, generator=torch.Generator().manual_seed(len(split)))
        pictures = torch.zeros(size, 2, 2)
        return NamedTensors(
            {"height": sides[0], "width": sides[1], "picture": pictures}, (sides[0] * sides[1]).unsqueeze(1)
        )

    def read(self, path: Path) -> dict[str, Tensor]:
        height, width = map(float, path.read_text(encoding="utf-8").split())
        return {"height": torch.tensor(height), "width": torch.tensor(width), "picture": torch.zeros(2, 2)}


class Stream(Rectangles):
    """The same samples, one after the other, without a length of the training data."""

    def facts(self) -> DataSpec:
        return replace(super().facts(), num_train=None)

    def load(self, split: Split) -> Any:
        held = Rectangles().load(split)
        return Endless(held) if split == "train" else iter_of(held)


class Endless:
    """Again and again."""

    def __init__(self, held: NamedTensors) -> None:
        self.held = held

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from iter_of(self.held)


def iter_of(held: NamedTensors) -> list[Any]:
    return [held[index] for index in range(len(held))]


class Area(nn.Module):
    """Takes its inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, width: Tensor, height: Tensor, picture: Tensor) -> Tensor:
        outputs: Tensor = self.net(torch.stack([height, width], 1)) + picture.mean((1, 2)).unsqueeze(1)
        return outputs


def own(directory: Path, model: type[OwnTokens]) -> Trained:
    """A trained module of the user's on the user's data."""
    data = {"_target_": f"{__name__}.OwnBatches", "global_batch_size": 8}
    node = {"_target_": f"{__name__}.{model.__name__}"}
    config = {"data": data, "model": node, "trainer__monitor": "val/loss", "trainer__mode": "min"}
    return after(replace(digits_plan(directory, **config, trainer__max_epochs=1), data=None, steps=None))


def rectangles(directory: Path, source: type[Source] = Rectangles, **overrides: Any) -> Plan:
    """A plan of a packaged task on inputs with names."""
    task = {"_target_": "hpcexp.train.tasks.regression.Regression", "loss": {"_target_": "torch.nn.MSELoss"}}
    config = {
        "data": {"_target_": f"{__name__}.{source.__name__}", "global_batch_size": 16},
        "model": {"_target_": f"{__name__}.Area"},
        "task": {**task, "metrics": ["mse", "r2"], "monitor": "val/mse"},
        "trainer__monitor": "val/mse",
        "trainer__mode": "min",
        **overrides,
    }
    plan = digits_plan(directory, **config)
    facts = source().facts()
    return replace(plan, data=facts, steps=steps(plan.settings, plan.batch, facts)[0])


def after(plan: Plan) -> Trained:
    train_plan(plan)
    run = RunDir(Path(plan.run_dir))
    save_plan(plan, run.plan)
    return load_trained(run)


def test_a_users_module_predicts_by_its_outputs(tmp_path: Path) -> None:
    """Each sample with all outputs, by name, from batches of which forward takes a part."""
    trained = own(tmp_path, OwnTokens)
    found = list(predict_split(trained, "test"))
    assert 24 == len(found)
    assert {"logits", "total"} == found[0].value.keys()
    assert (6, 8) == torch.tensor(found[5].value["logits"]).shape
    assert {"test/loss"} == evaluate(trained, "test").keys()


def test_a_users_module_predicts_by_its_predict_step(tmp_path: Path) -> None:
    """A generator of samples, with texts in them."""
    found = list(predict_split(own(tmp_path, OwnPredictions), "val"))
    assert [f"s{i}" for i in range(24)] == [prediction.value["name"] for prediction in found]
    assert all(len(prediction.value["tokens"]) == 6 for prediction in found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_users_module_is_exported_with_the_inputs_that_it_takes(tmp_path: Path) -> None:
    """Tokens and a number, by name; as many samples as one likes."""
    trained = own(tmp_path, OwnTokens)
    assert {"tokens", "weight"} == examples(trained).tensors.keys()
    export(trained, "torch", tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    outputs = program(tokens=torch.zeros(5, 6, dtype=torch.int64), weight=torch.ones(5))
    assert ((5, 6, 8), (5,)) == (tuple(outputs["logits"].shape), tuple(outputs["total"].shape))
    export(trained, "torchscript", tmp_path / "model.pt")
    again = torch.jit.load(tmp_path / "model.pt")(tokens=torch.zeros(5, 6, dtype=torch.int64), weight=torch.ones(5))  # type: ignore[no-untyped-call]
    assert torch.equal(outputs["total"], again["total"])


def test_inputs_with_names_in_memory_reach_the_model(tmp_path: Path) -> None:
    """Through training, evaluation, prediction and export; held or read, the losses are the same."""
    trained = after(rectangles(tmp_path / "held", trainer__max_epochs=3))
    assert {"val/loss", "val/mse", "val/r2"} == evaluate(trained, "val").keys()
    assert 16 == len(list(predict_split(trained, "test")))
    example = examples(trained)
    assert ["height", "width", "picture"] == list(example.tensors)
    export(trained, "torch", tmp_path / "model.pt2")
    read = after(rectangles(tmp_path / "read", trainer__max_epochs=3, data__loader="map"))
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, read.module.state_dict()[name])


def test_a_stream_of_samples_trains(tmp_path: Path) -> None:
    """For so many steps; each evaluation sample once."""
    plan = rectangles(tmp_path, Stream, trainer__max_steps=9, scheduler={})
    trained = after(plan)
    whole = Rectangles().load("val")
    with torch.inference_mode():
        outputs = trained.network(**whole.inputs)
    assert nn.functional.mse_loss(outputs, whole.targets).item() == pytest.approx(evaluate(trained, "val")["val/mse"])


def test_what_cannot_be_augmented_is_refused(tmp_path: Path) -> None:
    """An augmentation of pictures has nothing to do with batches of other kinds."""
    flip = {"_target_": "hpcexp.data.augment.RandomFlip"}
    with pytest.raises(ConfigError, match=r"data.augment changes batches of two tensors"):
        train_plan(rectangles(tmp_path, data__augment=flip))
