"""Metrics of tasks: by name, by mapping and by target; exact over batches and ranks, with their direction."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from hpcexp.data_spec import Classes, DataSpec, Targets, TensorSpec, Values
from hpcexp.errors import ConfigError
from hpcexp.train.tasks.classification import Classification, Multilabel
from hpcexp.train.tasks.evaluation import Evaluation
from hpcexp.train.tasks.metric_specs import OWN_OF_CLASSES, metric_specs, modes
from hpcexp.train.tasks.regression import Regression
from hpcexp.train.tasks.supervised import Plain, Supervised

CROSS_ENTROPY = {"_target_": "torch.nn.CrossEntropyLoss"}
LABELS = ("a", "b", "c")
TASKS: dict[str, tuple[type[Supervised], str, list[Any], Targets]] = {
    "classes": (
        Classification,
        "torch.nn.CrossEntropyLoss",
        ["acc", "top5", "f1", "auroc", "ap", "kappa", {"metric": "f1", "name": "f1_micro", "average": "micro"}],
        Classes(LABELS),
    ),
    "labels": (Multilabel, "torch.nn.BCEWithLogitsLoss", ["f1", "auroc", "acc"], Classes(LABELS, multiple=True)),
    "values": (
        Regression,
        "torch.nn.MSELoss",
        ["mse", "mae", "r2", "rmse", "spearman", {"metric": "pearson", "mode": "max"}],
        Values((1,)),
    ),
}


def spec(targets: Targets) -> DataSpec:
    return DataSpec(40, 40, 40, {"x": TensorSpec((3,))}, targets, "f")


def made(kind: str) -> tuple[Supervised, dict[str, Any]]:
    """A task and its torchmetrics."""
    cls, loss, metrics, targets = TASKS[kind]
    task = cls({"_target_": loss}, metrics)
    assert [] == task.problems(spec(targets))
    modules = task.modules(spec(targets))
    return task, {name: module for name, module in modules.items() if name != "loss"}


def batches(kind: str, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets of an evaluation set."""
    generator = torch.Generator().manual_seed(7)
    targets = TASKS[kind][3]
    outputs = torch.randn(count, 1 if isinstance(targets, Values) else 3, generator=generator)
    if isinstance(targets, Values):
        return outputs, outputs * 0.7 + torch.randn(count, 1, generator=generator)
    if targets.multiple:
        return outputs, (outputs + torch.randn(count, 3, generator=generator) > 0).float()
    return outputs, (outputs + torch.randn(count, 3, generator=generator)).argmax(-1)


def evaluated(kind: str, parts: list[slice]) -> dict[str, float]:
    """The metrics over parts of the evaluation set."""
    task, aggregates = made(kind)
    evaluation = Evaluation(task.metrics(), torch.device("cpu"), aggregates=aggregates)
    outputs, targets = batches(kind)
    for part in parts:
        evaluation.update(task.evaluate(nn.Identity(), (outputs[part], targets[part])))
    return evaluation.values()


@pytest.mark.parametrize("kind", TASKS)
def test_metrics_do_not_depend_on_batches(kind: str) -> None:
    """Uneven parts give what the whole set gives, also of one sample; they equal torchmetrics on the whole."""
    whole = evaluated(kind, [slice(0, 40)])
    assert whole == pytest.approx(evaluated(kind, [slice(0, 1), slice(1, 18), slice(18, 40)]), rel=1e-5)
    assert list(whole) == list(made(kind)[0].metrics())
    task, aggregates = made(kind)
    for name, metric in aggregates.items():
        metric.update(*task.arguments(*task.aligned(*batches(kind))))
        assert whole[name] == pytest.approx(float(metric.compute()), rel=1e-6)


RANKS = """
import json, sys
sys.path[:0] = {paths}
import torch
from test_task_metrics import TASKS, batches, made
from hpcexp.train.tasks.evaluation import Evaluation
from torch import nn
rank, world, place = int(sys.argv[1]), 2, sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{{place}}/meet", rank=rank, world_size=world)
found = {{}}
for kind in TASKS:
    for uneven in ([slice(0, 7), slice(7, 27)], [slice(27, 40)]), ([slice(0, 40)], []):
        task, aggregates = made(kind)
        evaluation = Evaluation(task.metrics(), torch.device("cpu"), aggregates=aggregates)
        outputs, targets = batches(kind)
        for part in uneven[rank]:
            evaluation.update(task.evaluate(nn.Identity(), (outputs[part], targets[part])))
        found.setdefault(kind, []).append(evaluation.values())
print(json.dumps(found))
"""


def test_metrics_do_not_depend_on_ranks(tmp_path: Path) -> None:
    """Two ranks of unequal shares, and one rank without any batch, give what one rank gives, on both."""
    script = RANKS.format(paths=[str(Path(__file__).parent)])
    command = [sys.executable, "-c", script]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    outputs = [process.communicate()[0] for process in ranks]
    assert [0, 0] == [process.returncode for process in ranks]
    assert outputs[0] == outputs[1]
    for kind, passes in json.loads(outputs[0]).items():
        alone = evaluated(kind, [slice(0, 40)])
        for values in passes:
            assert alone == pytest.approx(values, rel=1e-5)


def test_directions_are_read_from_torchmetrics_without_importing_it() -> None:
    """Of a usual name, of a class by its own name, of a `_target_`, inherited or its own."""
    entries = [
        "acc",
        "f1",
        "HingeLoss",
        "calibration_error",
        {"_target_": "torchmetrics.text.Perplexity", "name": "ppl"},
    ]
    specs, problems = metric_specs(entries, "Multiclass", OWN_OF_CLASSES)
    assert [] == problems
    directions = {
        "loss": "min",
        "acc": "max",
        "f1": "max",
        "HingeLoss": "min",
        "calibration_error": "min",
        "ppl": "min",
    }
    assert directions == modes(specs)


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        (["acc", "top6"], "task.metrics=top6: no such metric.\nFix: Did you mean 'top5'?"),
        (["acc", "acc"], "task.metrics: acc is there twice"),
        ([{"metric": "f1", "mode": "up"}], "mode=up is neither max nor min"),
        ([{"name": "x"}], "neither a name nor a mapping with `metric: NAME` or `_target_`"),
        ([{"_target_": "torchmetrics.NoSuch"}], "there is no 'NoSuch' in torchmetrics"),
        ("acc", "not a list"),
        ([{"_target_": "torchmetrics.MeanMetric"}], "nobody says whether a higher or a lower mean_metric is better"),
    ],
)
def test_metrics_that_cannot_be_had_are_named(metrics: Any, what: str) -> None:
    """All of them, while planning."""
    assert what in "\n".join(Classification(CROSS_ENTROPY, metrics).problems(spec(Classes(LABELS))))


def test_a_metric_of_several_numbers_is_refused() -> None:
    """A curve has no single value to be journalled."""
    task = Classification(CROSS_ENTROPY, [{"metric": "f1", "average": None}])
    aggregates: dict[str, Any] = dict(task.modules(spec(Classes(LABELS))))
    del aggregates["loss"]
    evaluation = Evaluation(task.metrics(), torch.device("cpu"), aggregates=aggregates)
    evaluation.update(task.evaluate(nn.Identity(), batches("classes")))
    with pytest.raises(ConfigError, match=r"f1 gives \(3,\), not one number(.|\n)*average=macro"):
        evaluation.values()


def test_positions_of_a_sequence_count_each_but_those_that_are_ignored() -> None:
    """Outputs with classes last or second; a batch in which nothing counts changes nothing."""
    task = Classification(CROSS_ENTROPY, ["acc"])
    task.modules(spec(Classes(LABELS, (None,))))
    outputs, targets = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, -100, -100], [1, 1, 1, 1, -100]])
    is_counted = targets != -100
    for given in (outputs, outputs.movedim(-1, 1)):
        evaluation = Evaluation(task.metrics(), torch.device("cpu"))
        evaluation.update(task.evaluate(nn.Identity(), (given, targets)))
        evaluation.update(task.evaluate(nn.Identity(), (given, torch.full_like(targets, -100))))
        values = evaluation.values()
        expected = nn.functional.cross_entropy(outputs[is_counted], targets[is_counted]).item()
        assert expected == pytest.approx(values["loss"])
        assert (outputs.argmax(-1) == targets)[is_counted].float().mean().item() == pytest.approx(values["acc"])


class Rectangle(NamedTuple):
    """A batch with names of a user's."""

    height: torch.Tensor
    width: torch.Tensor
    area: torch.Tensor


@dataclass
class Box:
    """Another one."""

    height: torch.Tensor
    width: torch.Tensor
    area: torch.Tensor


@pytest.mark.parametrize("as_named", [dict, lambda named: tuple(named.values()), Rectangle, Box, None])
def test_batches_with_names_reach_the_model_as_arguments(as_named: Any) -> None:
    """Mappings, named tuples, dataclasses; pairs of which the inputs are a mapping or a tuple."""

    class Two(nn.Module):
        def forward(self, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
            return height * 10 + width

    task = Plain({"_target_": "torch.nn.L1Loss"}, [], inputs=["height", "width"], targets="area")
    task.modules(None)
    named = {"height": torch.ones(2, 1), "width": torch.zeros(2, 1)}
    area = torch.full((2, 1), 4.0)
    batch: Any = {**named, "area": area, "name": ["x", "y"]}
    if as_named in (Rectangle, Box):
        batch = as_named(**named, area=area)
    elif as_named is not None:
        batch = (as_named(named), area)
    assert 6.0 == task.training_loss(Two(), batch).item()
    assert [[10.0], [10.0]] == [p.value for p in task.predict(Two(), task.inputs(batch))]


def test_a_batch_that_does_not_say_what_is_to_be_predicted_is_refused() -> None:
    """Three tensors, no target's name, a name that is not there."""
    task = Plain({"_target_": "torch.nn.L1Loss"})
    task.modules(None)
    x = torch.zeros(2)
    for batch in ((x, x, x), {"a": x, "b": x}, {"y": x, "label": x, "a": x}, x):
        with pytest.raises(ConfigError, match="does not say what is to be predicted"):
            task.training_loss(nn.Identity(), batch)
    named = Plain({"_target_": "torch.nn.L1Loss"}, targets="z")
    with pytest.raises(ConfigError, match=r"task.targets=z: batches have a, b"):
        named.training_loss(nn.Identity(), {"a": x, "b": x})
