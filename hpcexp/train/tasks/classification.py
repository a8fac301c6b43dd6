"""Classification: one of several classes, of a sample or of each position in it, or any number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpcexp.data_spec import Classes, DataSpec
from hpcexp.train.tasks.metric_specs import OWN_OF_CLASSES
from hpcexp.train.tasks.supervised import Supervised
from hpcexp.train.tasks.task import Evaluated, Prediction, Table, num_classes

if TYPE_CHECKING:
    from torch import Tensor, nn

LIKELY = 0.5
"""Probability from which on a class is predicted, of any number."""
IGNORED = -100
"""Target of a position that counts nowhere, as torch's losses have it."""


class Classification(Supervised):
    """Outputs `(B, …, classes)` or `(B, classes, …)`, targets `(B, …)` int64, of which -100 counts nowhere."""

    kind = "Multiclass"
    own = OWN_OF_CLASSES

    def problems(self, data: DataSpec | None) -> list[str]:
        """Also data whose targets are no single classes."""
        problems = super().problems(data)
        if data is None or data.targets is None:
            return problems
        if not isinstance(data.targets, Classes):
            wrong = [f"task.metrics={spec.name}" for spec in self.specs] or ["task"]
            problems.append(
                f"{', '.join(wrong)}: the data's targets are numbers.\nFix: task=regression, or other data."
            )
        elif data.targets.multiple:
            problems.append("task: the data's samples have several classes.\nFix: task=multilabel, or other data.")
        return problems

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One row for each position that counts."""
        if outputs.ndim <= 2:
            return super().aligned(outputs, targets)
        if outputs.shape[:-1] != targets.shape and (outputs.shape[0], *outputs.shape[2:]) == targets.shape:
            outputs = outputs.movedim(1, -1)
        outputs, targets = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
        is_counted = targets != IGNORED
        return outputs[is_counted], targets[is_counted]

    def arguments(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities: torchmetrics decides by the values of each batch whether it was given any."""
        return outputs.float().softmax(-1), targets

    def tables(self, data: DataSpec | None) -> Mapping[str, tuple[int, ...]]:
        """The confusion matrix: rows are true classes, columns predicted ones."""
        count = num_classes(data)
        return {} if count is None else {"confusion": (count, count)}

    def test(self, model: nn.Module, batch: Any) -> Evaluated:
        """Loss, metrics and confusion matrix."""
        from torch import bincount

        outputs, targets = self.outputs_of(model, batch)
        found = self.measured(outputs, targets)
        if (count := num_classes(self._data)) is not None:
            pairs = bincount(targets * count + outputs.argmax(-1), minlength=count**2)
            found["confusion"] = Table(pairs.view(count, count))
        return found

    def predictions(self, outputs: Tensor) -> Sequence[Prediction]:
        """The likeliest class of each sample, or of each position, and every class's probability."""
        from hpcexp.train.tasks.outputs import class_predictions

        return class_predictions(outputs, self._data.class_names if self._data else ())


class Multilabel(Supervised):
    """Any number of classes at once: outputs and targets `(B, classes)`, targets float32 zeros and ones."""

    kind = "Multilabel"

    def problems(self, data: DataSpec | None) -> list[str]:
        """Also data whose targets are something else."""
        problems = super().problems(data)
        targets = data.targets if data else None
        if targets is not None and not (isinstance(targets, Classes) and targets.multiple):
            problems.append(
                "task: the data's targets are not any number of classes at once.\n"
                "Fix: data whose targets are Classes(…, multiple=True), or another task."
            )
        return problems

    def arguments(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and whole numbers."""
        return outputs.float().sigmoid(), targets.long()

    def predictions(self, outputs: Tensor) -> Sequence[Prediction]:
        """Classes of at least `LIKELY` probability, and every class's probability."""
        rows = outputs.float().sigmoid().tolist()
        names = self._data.class_names if self._data else tuple(map(str, range(outputs.shape[-1])))
        named = [dict(zip(names, row, strict=True)) for row in rows]
        return [Prediction([name for name, p in row.items() if p >= LIKELY], values=row) for row in named]
