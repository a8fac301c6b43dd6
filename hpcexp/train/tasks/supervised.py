"""Supervised learning with named inputs: a loss of outputs and targets, and metrics by name."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from hpcexp.data_spec import DataSpec
from hpcexp.errors import ConfigError, listed
from hpcexp.schema.keys import TARGET
from hpcexp.train.tasks.metric_specs import metric_specs, modes
from hpcexp.train.tasks.task import Evaluated, Mode, Prediction, Sum, Task, Update

if TYPE_CHECKING:
    from torch import Tensor, nn

TARGET_NAMES = ("targets", "target", "labels", "label", "y")
"""Where targets are looked for in a batch with names."""


class Supervised(Task):
    """A `loss` of (outputs, targets), a mean over samples, and `metrics` by name, by mapping or by `_target_`.

    Batches are `(inputs, targets)` or have names: mappings, named tuples and dataclasses. Of those, `targets` names
    what is to be predicted, and `inputs` what the model takes, as arguments of the same names; empty: everything else.
    A pair's inputs may be a tensor, a tuple of arguments or a mapping from their names. `batch` names the parts of a
    tuple.
    """

    kind = ""
    """What torchmetrics calls this task: `Multiclass`, `Multilabel`, or nothing for values."""
    own: Mapping[str, Mode] = {}
    """hpcexp's own metrics that fit it."""

    def __init__(
        self,
        loss: Any,
        metrics: Sequence[Any] = (),
        inputs: Sequence[str] | None = None,
        targets: str | None = None,
        batch: Sequence[str] | None = None,
    ) -> None:
        self.loss_node, self.input_names, self.target_name, self.part_names = loss, inputs, targets, batch
        self.specs, self._metric_problems = metric_specs(metrics, self.kind, self.own)
        self._loss: Any = None
        self._data: DataSpec | None = None
        self._aggregates: dict[str, Any] = {}

    def metrics(self) -> Mapping[str, Mode | None]:
        """The loss and what `task.metrics` names."""
        return modes(self.specs)

    def problems(self, data: DataSpec | None) -> list[str]:
        """Metrics that do not exist or have no direction, and inputs that the data does not have."""
        problems = list(self._metric_problems)
        problems += [
            f"task.metrics: nobody says whether a higher or a lower {spec.name} is better.\n"
            f"Fix: give its entry `mode: max` or `mode: min`."
            for spec in self.specs
            if spec.mode is None
        ]
        if not isinstance(self.loss_node, Mapping) or self.loss_node.get(TARGET) is None:
            problems.append("task.loss._target_: it is needed.\nFix: task.loss._target_=…, or task=OPTION")
        if data is not None and self.input_names:
            problems += [
                f"task.inputs={name}: the data has no such input.\nFix: {listed(data.inputs)}."
                for name in self.input_names
                if name not in data.inputs
            ]
        if data is not None and data.targets is None:
            problems.append("task: the data has no targets to learn from.\nFix: data with targets, or another task.")
        return problems

    def modules(self, data: DataSpec | None) -> Mapping[str, nn.Module]:
        """The loss, where it is a module, and torchmetrics."""
        from torch import nn

        from hpcexp.targets.instantiate import instantiate
        from hpcexp.train.tasks.aggregates import make_aggregate

        self._data = data
        self._loss = instantiate(self.loss_node, path="task.loss")
        self._aggregates = {s.name: make_aggregate(s, data) for s in self.specs if s.target is not None}
        return {**({"loss": self._loss} if isinstance(self._loss, nn.Module) else {}), **self._aggregates}

    def training_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of one batch."""
        inputs, targets = self.split(batch)
        loss: Tensor = self._loss(*self.aligned(_tensor(called(model, inputs), model), targets))
        return loss

    def evaluate(self, model: nn.Module, batch: Any) -> Evaluated:
        """Loss and metrics, weighted by samples."""
        return self.measured(*self.outputs_of(model, batch))

    def outputs_of(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a batch, as loss and metrics take them."""
        inputs, targets = self.split(batch)
        return self.aligned(_tensor(called(model, inputs), model), targets)

    def measured(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """What a batch adds to each metric."""
        from hpcexp.train.tasks.counts import COUNTS
        from hpcexp.train.tasks.evaluation import wide

        size = self.weight(targets)
        # Of no samples a loss is not a number.
        loss = self._loss(outputs, targets).to(wide(outputs.device)) * size if size else outputs.new_zeros(())
        found: dict[str, Any] = {"loss": Sum(loss, size)}
        for spec in self.specs:
            if spec.target is None:
                found[spec.name] = Sum(COUNTS[spec.metric](outputs, targets), size)
            else:
                found[spec.name] = Update(self.arguments(outputs, targets))
        return found

    def weight(self, targets: Tensor) -> int:
        """Samples that a batch counts as."""
        return targets.shape[0]

    def arguments(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What torchmetrics takes."""
        return outputs, targets

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, 1)` outputs as `(B,)` where targets are: a loss would broadcast them to `(B, B)`."""
        if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
            return outputs.squeeze(-1), targets
        return outputs, targets

    def inputs(self, batch: Any) -> Any:
        """The model's part of a batch, with or without targets."""
        named = named_parts(batch, self.part_names)
        if named is None:
            return batch[0] if isinstance(batch, tuple | list) else batch
        target = self.target_name or next((name for name in TARGET_NAMES if name in named), None)
        return self._inputs_of({name: value for name, value in named.items() if name != target})

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch; ConfigError where it does not say which is which."""
        named = named_parts(batch, self.part_names)
        if named is None:
            if isinstance(batch, tuple | list) and len(batch) == 2:
                return batch[0], batch[1]
            raise _unclear(f"a {type(batch).__name__}{f' of {len(batch)} parts' if hasattr(batch, '__len__') else ''}")
        target = self.target_name
        if target is None:
            found = [name for name in TARGET_NAMES if name in named]
            if len(found) != 1:
                raise _unclear(f"{listed(named)}")
            target = found[0]
        if target not in named:
            raise ConfigError(f"task.targets={target}: batches have {listed(named)}.\nFix: task.targets=NAME")
        return self._inputs_of({name: value for name, value in named.items() if name != target}), named[target]

    def _inputs_of(self, named: dict[str, Any]) -> dict[str, Any]:
        if self.input_names is None:
            return named
        if missing := [name for name in self.input_names if name not in named]:
            raise ConfigError(f"task.inputs={listed(missing)}: batches have {listed(named)}.\nFix: 'task.inputs=[…]'")
        return {name: named[name] for name in self.input_names}

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Sequence[Prediction]:
        """What outputs say of each sample."""

    def predict(self, model: nn.Module, inputs: Any) -> Sequence[Prediction]:
        """A prediction for each sample."""
        return self.predictions(called(model, inputs))


class Plain(Supervised):
    """Supervised learning of anything: predictions are the model's outputs as numbers."""

    def predictions(self, outputs: Any) -> Sequence[Prediction]:
        """The outputs of each sample, as nested lists; of several outputs a mapping or list of them."""
        from hpcexp.train.tasks.outputs import as_predictions

        return as_predictions(outputs)


def called(model: nn.Module, inputs: Any) -> Any:
    """What the model says of inputs: a tensor, a tuple of arguments or a mapping from their names.

    ConfigError where its forward does not take these arguments.
    """
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    except TypeError as e:
        if problem := _call_problem(model, inputs):
            raise ConfigError(problem) from e
        raise


def _call_problem(model: nn.Module, inputs: Any) -> str:
    """Why forward cannot be called with inputs; empty where it can, and has raised something itself."""
    network = getattr(model, "module", model)
    named = inputs if isinstance(inputs, Mapping) else {}
    given = () if named else inputs if isinstance(inputs, tuple | list) else (inputs,)
    try:
        inspect.signature(network.forward).bind(*given, **named)
    except TypeError as e:
        what = listed(named) if named else f"{len(given)} inputs"
        return (
            f"task: {type(network).__name__}.forward does not take {what} of a batch: {e}.\n"
            "Fix: 'task.batch=[…]' or 'task.inputs=[…]' with the names of its arguments."
        )
    return ""


def _tensor(outputs: Any, model: nn.Module) -> Tensor:
    """The outputs of a model; ConfigError where they are not one tensor, which losses and metrics compare."""
    from torch import Tensor

    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"task: {type(getattr(model, 'module', model)).__name__} gives a {type(outputs).__name__}, and this task "
            "compares one tensor with the targets.\n"
            "Fix: task=model_loss if the model computes its loss; or a task of your own."
        )
    return outputs


def named_parts(batch: Any, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Parts of a batch by name; None where they have none. `names`: of the parts of a plain tuple or list."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if is_dataclass(batch):
        return {f.name: getattr(batch, f.name) for f in fields(batch)}
    if names is None or not isinstance(batch, tuple | list):
        return None
    if len(names) != len(batch):
        raise ConfigError(
            f"task.batch names {len(names)} parts, and a batch has {len(batch)}.\nFix: 'task.batch=[inputs,targets]'"
        )
    return dict(zip(names, batch, strict=True))


def _unclear(what: str) -> ConfigError:
    return ConfigError(
        f"task: a batch is {what}, which does not say what is to be predicted.\n"
        "Fix: batches of (inputs, targets); or names for their parts, as 'task.batch=[sound,length,label]', and "
        "task.targets=label."
    )
