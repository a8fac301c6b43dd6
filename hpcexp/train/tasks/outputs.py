"""What models say, as plain data for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hpcexp.train.tasks.task import Prediction


def as_predictions(outputs: Any) -> list[Prediction]:
    """A prediction for each sample: Predictions as they are, tensors as numbers, several outputs together."""
    return [value if isinstance(value, Prediction) else Prediction(value) for value in unbatched(outputs)]


def class_predictions(outputs: Tensor, names: Sequence[str]) -> list[Prediction]:
    """The likeliest class of each sample, and every class's probability; of positions the likeliest class of each."""
    return [_class_prediction(row, names) for row in outputs.float().softmax(-1).cpu()]


def unbatched(outputs: Any) -> list[Any]:
    """The part of each sample: along the first axis of tensors, for every one of several outputs."""
    if isinstance(outputs, Tensor):
        return outputs.unsqueeze(0).tolist() if outputs.ndim == 0 else outputs.tolist()
    if isinstance(outputs, Mapping):
        columns = {name: unbatched(value) for name, value in outputs.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(outputs, tuple) and any(isinstance(part, Tensor) for part in outputs):
        return [list(row) for row in zip(*map(unbatched, outputs), strict=True)]
    if isinstance(outputs, str) or not hasattr(outputs, "__iter__"):
        return [outputs]
    return [plain(value) for value in outputs]  # a list or generator of samples


def plain(value: Any) -> Any:
    """Tensors as numbers, at any depth."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _class_prediction(probabilities: Tensor, names: Sequence[str]) -> Prediction:
    if probabilities.ndim > 1:
        best = probabilities.argmax(-1)
        return Prediction([names[i] for i in best.tolist()] if names and best.ndim == 1 else best.tolist())
    index, values = int(probabilities.argmax()), probabilities.tolist()
    if not names:
        return Prediction(index, values[index], values)
    return Prediction(names[index], values[index], dict(zip(names, values, strict=True)))
