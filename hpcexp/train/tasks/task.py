"""What hpcexp asks of a task: metrics and fitting data for planning, loss, evaluation and predictions for the job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from hpcexp.data_spec import Classes, DataSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

Mode: TypeAlias = Literal["max", "min"]
"""Whether a higher or a lower value is better."""


class Sum(NamedTuple):
    """A metric's part of a batch. The metric is the sum of totals over that of weights, over all batches and ranks."""

    total: Tensor
    """Scalar."""
    weight: Tensor | float
    """Samples, or positions, that are in `total`."""


class Update(NamedTuple):
    """A batch for a torchmetrics object among the task's `modules`, of the metric's name."""

    arguments: tuple[Any, ...]
    """Of its `update`."""


class Table(NamedTuple):
    """Counts of a batch, which are summed over batches and ranks: a confusion matrix."""

    counts: Tensor


Evaluated: TypeAlias = Mapping[str, Sum | Update | Table]


class Prediction(NamedTuple):
    """What the model predicts for one sample, as plain data."""

    value: Any
    """The likeliest class, a number, a text, several of them."""
    probability: float | None = None
    """Of `value`, where the model gives one."""
    values: Any = None
    """Everything that the model says: class → probability, or numbers."""


class Task(ABC):
    """What a model learns. Its constructor takes the arguments beside `task._target_`, and does nothing slow.

    Importing its module, constructing it, `metrics`, `problems` and `model_arguments` belong to planning, which has
    neither torch nor numpy. Mappings with a `_target_` among its arguments, as of a loss, are given as they are: the
    job builds them, in `modules` with `hpcexp.targets.instantiate.instantiate`.

    A batch is what `collate` makes of samples, on the model's device; `model` is the network, wrapped as the strategy
    needs it. Samples of a `Source` are `(inputs, targets)` pairs or mappings with the names of its `DataSpec`.
    """

    @abstractmethod
    def metrics(self) -> Mapping[str, Mode | None]:
        """Every name that `evaluate` gives, with its direction; `loss` belongs to them. None: nobody knows it.

        A validation reports them as `val/NAME`, a test as `test/NAME`; `trainer.monitor` and sweeps read them here.
        """

    @abstractmethod
    def training_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Scalar loss of a training batch, the mean over its samples."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Any) -> Evaluated:
        """What a batch adds to each of `metrics`. Without gradients, in evaluation mode."""

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Any) -> Sequence[Prediction]:
        """A prediction for each sample of a batch of inputs."""

    def problems(self, data: DataSpec | None) -> list[str]:
        """What is wrong with the arguments, or with the data for this task; `data` None: planning cannot know it."""
        return []

    def model_arguments(self, data: DataSpec) -> dict[str, Any]:
        """Arguments of the model that follow from the data, given where the model takes them by name."""
        return model_arguments(data)

    def modules(self, data: DataSpec | None) -> Mapping[str, nn.Module]:
        """Modules that the task needs in the job, made once: losses with weights, torchmetrics by their metric's name.

        They move to the model's device; what they keep is part of checkpoints.
        """
        return {}

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples, where their source does not collate them itself."""
        from torch.utils.data import default_collate

        return default_collate(list(samples))

    def inputs(self, batch: Any) -> Any:
        """The part of a batch that the model sees: a tensor, a tuple of arguments or a mapping from their names."""
        return batch[0] if isinstance(batch, list | tuple) else batch

    def tables(self, data: DataSpec | None) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of the counts that `test` adds to what `evaluate` gives."""
        return {}

    def test(self, model: nn.Module, batch: Any) -> Evaluated:
        """`evaluate` with a test's `tables`."""
        return self.evaluate(model, batch)


def model_arguments(data: DataSpec) -> dict[str, Any]:
    """`in_shape` where there is one input, and `num_classes` where there are targets."""
    arguments: dict[str, Any] = {}
    if len(data.inputs) == 1:
        arguments["in_shape"] = next(iter(data.inputs.values())).shape
    if data.targets is not None:
        arguments["num_classes"] = data.targets.num_outputs
    return arguments


def num_classes(data: DataSpec | None) -> int | None:
    """How many classes there are; None where targets are none."""
    return len(data.class_names) if data is not None and isinstance(data.targets, Classes) else None
