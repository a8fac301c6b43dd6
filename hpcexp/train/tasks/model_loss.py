"""Training of models that compute their loss themselves, as those of transformers and many GPTs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpcexp.errors import ConfigError, listed
from hpcexp.train.tasks.supervised import TARGET_NAMES, called, named_parts
from hpcexp.train.tasks.task import Evaluated, Mode, Prediction, Sum, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


class ModelLoss(Task):
    """The model gets a whole batch and gives its loss: alone, in a tuple, or as `loss` of a mapping or an object.

    Batches are tuples, whose parts are arguments in their order, or have names, which are those of arguments. `batch`
    names the parts of a tuple. A prediction calls the model without what `targets` names; empty: the last part of a
    tuple, or targets, target, labels, label or y.
    """

    def __init__(self, batch: Sequence[str] | None = None, targets: str | None = None) -> None:
        self.part_names, self.target_name = batch, targets

    def metrics(self) -> Mapping[str, Mode | None]:
        """The loss alone."""
        return {"loss": "min"}

    def training_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of one batch."""
        named = named_parts(batch, self.part_names)
        return loss_of(called(model, batch if named is None else named))

    def evaluate(self, model: nn.Module, batch: Any) -> Evaluated:
        """Loss, weighted by samples."""
        from hpcexp.train.tasks.evaluation import wide

        size = _size(batch)
        loss = self.training_loss(model, batch)
        return {"loss": Sum(loss.to(wide(loss.device)) * size, size)}

    def inputs(self, batch: Any) -> Any:
        """The batch without its targets."""
        named = named_parts(batch, self.part_names)
        if named is None:
            return tuple(batch[:-1]) if isinstance(batch, tuple | list) and len(batch) > 1 else batch
        target = self.target_name or next((name for name in TARGET_NAMES if name in named), None)
        return {name: value for name, value in named.items() if name != target}

    def predict(self, model: nn.Module, inputs: Any) -> Sequence[Prediction]:
        """The model's outputs for each sample, as numbers."""
        from hpcexp.train.tasks.outputs import as_predictions

        return as_predictions(_without_loss(called(model, inputs)))


def loss_of(outputs: Any) -> Tensor:
    """The scalar among what a model gives; ConfigError where there is none, or more than one."""
    from torch import Tensor

    if isinstance(outputs, Mapping) or hasattr(outputs, "loss"):
        found = [outputs.get("loss") if isinstance(outputs, Mapping) else outputs.loss]
    else:
        found = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    scalars: list[Tensor] = [value for value in found if isinstance(value, Tensor) and value.ndim == 0]
    if len(scalars) != 1:
        shapes = [list(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in found]
        raise ConfigError(
            f"task: the model gives {len(scalars)} losses, which are scalars, among {listed(map(str, shapes))}.\n"
            "Fix: let its forward give one, alone, in a tuple, or named loss; or task=OPTION with a loss."
        )
    return scalars[0]


def _without_loss(outputs: Any) -> Any:
    """What the model says of the samples."""
    from torch import Tensor

    if isinstance(outputs, Mapping):  # transformers' outputs are mappings, too
        return {name: v for name, v in outputs.items() if isinstance(v, Tensor) and v.ndim > 0}
    if isinstance(outputs, tuple | list):
        kept = tuple(v for v in outputs if isinstance(v, Tensor) and v.ndim > 0)
        return kept[0] if len(kept) == 1 else kept
    return outputs


def _size(batch: Any) -> int:
    """Samples of a batch: the first length of its first tensor."""
    from torch import Tensor

    named = named_parts(batch, None)
    parts = [batch] if isinstance(batch, Tensor) else list(named.values() if named is not None else batch)
    return next(len(part) for part in parts if isinstance(part, Tensor) and part.ndim)
