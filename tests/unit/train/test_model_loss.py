"""Tasks of batches without names, and of models that compute their loss themselves."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcexp.errors import ConfigError
from hpcexp.train.tasks.classification import Classification
from hpcexp.train.tasks.model_loss import ModelLoss, loss_of

LOSS = {"_target_": "torch.nn.CrossEntropyLoss"}
Batch = namedtuple("Batch", ["ids", "targets"])


class Gpt(nn.Module):
    """Gives outputs and loss, as many GPTs do; the outputs alone where there are no targets."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = nn.functional.one_hot(ids, 4).float()
        return logits, None if targets is None else nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 4


@pytest.mark.parametrize(
    "batch", [(ids(2, 3), ids(2, 3)), Batch(ids(2, 3), ids(2, 3)), {"ids": ids(2, 3), "targets": ids(2, 3)}]
)
def test_a_model_gets_the_whole_batch_and_gives_its_loss(batch: Any) -> None:
    """By order or by name; a prediction goes without the targets, and leaves the loss out."""
    task, model = ModelLoss(), Gpt()
    expected = model(ids(2, 3), ids(2, 3))[1]
    assert expected is not None
    assert torch.equal(expected, task.training_loss(model, batch))
    found = task.evaluate(model, batch)["loss"]
    assert (pytest.approx(2 * float(expected)), 2) == (float(found.total), found.weight)  # type: ignore[union-attr]
    predictions = task.predict(model, task.inputs(batch))
    assert [model(ids(2, 3))[0][i].tolist() for i in range(2)] == [p.value for p in predictions]


@pytest.mark.parametrize(
    "outputs",
    [
        torch.tensor(1.5),
        (torch.tensor(1.5), torch.zeros(3)),
        {"loss": torch.tensor(1.5), "logits": torch.zeros(3)},
        SimpleNamespace(loss=torch.tensor(1.5), logits=torch.zeros(3)),
    ],
)
def test_a_loss_is_found_in_what_models_give(outputs: Any) -> None:
    """Alone, in a tuple, by its name."""
    assert float(loss_of(outputs)) == 1.5


@pytest.mark.parametrize(
    ("outputs", "number"),
    [(torch.zeros(3), 0), ((torch.tensor(1.0), torch.tensor(2.0)), 2), ({"logits": torch.zeros(3)}, 0)],
)
def test_no_loss_or_several_are_refused(outputs: Any, number: int) -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match=rf"the model gives {number} losses.*\nFix: let its forward give one"):
        loss_of(outputs)


def test_parts_of_a_tuple_have_the_names_that_the_task_gives_them() -> None:
    """Here a padded sound, its length and the label, which the model never sees."""
    task = Classification(LOSS, batch=["sounds", "lengths", "label"])
    sounds, lengths, labels = torch.zeros(2, 5), torch.tensor([5, 3]), torch.tensor([1, 0])
    inputs, targets = task.split((sounds, lengths, labels))
    assert (["sounds", "lengths"], True) == (list(inputs), targets is labels)
    assert ["sounds", "lengths"] == list(task.inputs([sounds, lengths, labels]))
    with pytest.raises(ConfigError, match=r"task.batch names 3 parts, and a batch has 2"):
        task.split((sounds, labels))
    with pytest.raises(ConfigError, match=r"a tuple of 3 parts, which does not say what is to be predicted"):
        Classification(LOSS).split((sounds, lengths, labels))


def test_a_model_that_does_not_fit_its_task_is_named() -> None:
    """Its outputs, or the arguments that it is to take; an error of its own stays what it is."""
    with pytest.raises(ConfigError, match=r"Gpt gives a tuple, and this task(.|\n)*Fix: task=model_loss"):
        Classification(LOSS).training_loss(Gpt(), (ids(2, 3), ids(2, 3)))
    with pytest.raises(ConfigError, match=r"Gpt.forward does not take a, b of a batch: .*'ids'"):
        ModelLoss(batch=["a", "b"]).training_loss(Gpt(), (ids(2, 3), ids(2, 3)))
    with pytest.raises(ConfigError, match=r"Gpt.forward does not take 3 inputs of a batch"):
        ModelLoss().training_loss(Gpt(), (ids(2), ids(2), ids(2)))
    with pytest.raises(TypeError, match="one_hot"):
        ModelLoss().training_loss(Gpt(), {"ids": "text"})
