"""Regression: real numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hpcexp.data_spec import DataSpec, Values
from hpcexp.schema.keys import TARGET
from hpcexp.train.tasks.metric_specs import OWN_OF_VALUES
from hpcexp.train.tasks.supervised import Supervised
from hpcexp.train.tasks.task import Prediction

if TYPE_CHECKING:
    from torch import Tensor


CLASS_LOSSES = frozenset({"torch.nn.CrossEntropyLoss", "torch.nn.NLLLoss", "torch.nn.MultiMarginLoss"})
"""Losses that need class numbers for targets."""


class Regression(Supervised):
    """Outputs and targets of the same shape, `(B, D)` or `(B,)`, real numbers."""

    own = OWN_OF_VALUES

    def problems(self, data: DataSpec | None) -> list[str]:
        """Also data whose targets are no numbers."""
        problems = super().problems(data)
        if data is not None and data.targets is not None and not isinstance(data.targets, Values):
            wrong = [f"task.metrics={spec.name}" for spec in self.specs] or ["task"]
            problems.append(
                f"{', '.join(wrong)}: the data's targets are classes.\nFix: task=classification, or other data."
            )
        loss = self.loss_node.get(TARGET) if isinstance(self.loss_node, Mapping) else None
        if loss in CLASS_LOSSES:
            problems.append(
                f"task.loss._target_={loss}: it needs class numbers.\nFix: task=classification, or another loss."
            )
        return problems

    def predictions(self, outputs: Tensor) -> Sequence[Prediction]:
        """The outputs of each sample."""
        return [Prediction(row.flatten().tolist(), None, row.flatten().tolist()) for row in outputs.cpu()]
