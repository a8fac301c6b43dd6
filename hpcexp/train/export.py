"""A trained network for use without hpcexp: written, read again and compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.core.module import _jit_is_scripting
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from hpcexp.data_spec import DataSpec
from hpcexp.errors import HpcexpError, RunError
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.inference import Trained, split_batches
from hpcexp.train.tasks.inputs import Inputs, inputs_of
from hpcexp.train.tasks.module import TaskModule

Format = Literal["torch", "torchscript"]
TOLERANCE = 1e-4
MAX_EXAMPLES = 4


def export(trained: Trained, form: Format, path: Path) -> None:
    """Write the model for use without hpcexp, and make sure that what was written gives the same outputs."""
    example = examples(trained)
    network, spec = trained.network, trained.plan.data
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with torch.inference_mode():
            expected = network(*example.positional, **example.named)
        again = _scripted(network, example, path) if form == "torchscript" else _exported(network, example, path, spec)
    except Exception as e:  # torch raises nearly anything for a model that it cannot follow
        other = "torchscript" if form == "torch" else "torch"
        raise HpcexpError(
            f"The model cannot be exported as {form}: {type(e).__name__}: {str(e).splitlines()[0]}\n"
            f"Fix: --format {other}, or let forward() depend on shapes only."
        ) from e
    if (difference := _difference(expected, again)) > TOLERANCE:
        raise HpcexpError(f"What was exported gives outputs that differ from the model's by {difference:.3g}.")


def _exported(network: nn.Module, example: Inputs, path: Path, spec: DataSpec | None) -> Any:
    shapes = [tree_map(_dynamic(name, spec), value) for name, value in enumerate(example.positional)]
    named = {name: tree_map(_dynamic(name, spec), value) for name, value in example.named.items()}
    program = torch.export.export(
        network,
        example.positional,
        dict(example.named),
        dynamic_shapes=named if named and not shapes else (*shapes, *named.values()),
        strict=False,
    )
    torch.export.save(program, path)
    return torch.export.load(path).module()(*example.positional, **example.named)


def _dynamic(name: str | int, spec: DataSpec | None) -> Any:
    """Says of a tensor which axes vary: that of the batch, and those that the data's spec leaves open."""
    inputs = spec.inputs if spec else {}
    known = inputs.get(name) if isinstance(name, str) else [*inputs.values(), *[None] * (name + 1)][name]

    def axes(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        varying = [i for i, side in enumerate(known.shape, 1) if side is None] if known else []
        return {0: torch.export.Dim.DYNAMIC, **dict.fromkeys(varying, torch.export.Dim.AUTO)} if value.ndim else None

    return axes


def _scripted(network: nn.Module, example: Inputs, path: Path) -> Any:
    first = Inputs(tree_map(_one, example.positional), tree_map(_one, dict(example.named)))
    # Without it, a LightningModule asks for its trainer when torch looks at what it has.
    with torch.inference_mode(), _jit_is_scripting():
        if first.named and first.positional:
            raise RunError("TorchScript traces either positional or named inputs")
        given: Any = (
            {"example_kwarg_inputs": dict(first.named)} if first.named else {"example_inputs": first.positional}
        )
        traced = torch.jit.trace(network, check_trace=False, strict=False, **given)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
        read = torch.jit.load(path)  # type: ignore[no-untyped-call]
        return read(*example.positional, **example.named)


def _one(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.ndim else value


def _difference(expected: Any, found: Any) -> float:
    """The largest between two trees of tensors; infinite where they are not alike."""
    pairs = [(a, b) for a, b in zip(tree_leaves(expected), tree_leaves(found), strict=True) if isinstance(a, Tensor)]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    apart = [(a.detach().double() - b.detach().double()).abs().max().item() for a, b in pairs if a.numel()]
    return max((float("inf") if value != value else value for value in apart), default=0.0)  # noqa: PLR0124


def examples(trained: Trained) -> Inputs:
    """A few inputs of the network: the module's `example_input_array`, the source's samples, or of the test data."""
    module, data = trained.module, trained.data
    own = getattr(module, "example_input_array", None)
    if own is not None:
        return _limited(inputs_of(module, own, is_inputs=True))
    if isinstance(data, SourceData):
        batch = _example_batch(trained)
    else:
        split = next((s for s in ("test", "val", "train") if _has(data, s)), "train")
        batch = next(split_batches(trained, split))  # type: ignore[arg-type]
    if isinstance(module, TaskModule):
        return _limited(inputs_of(module.model, module.task.inputs(batch), is_inputs=True))
    return _limited(inputs_of(module, batch))


def _has(data: Any, split: str) -> bool:
    from pytorch_lightning.utilities.model_helpers import is_overridden

    return is_overridden(f"{split}_dataloader", data)


def _example_batch(trained: Trained) -> Any:
    """A batch of a source's own examples, or of the last of its splits that has samples."""
    source = trained.source
    samples = list(islice(source.example(), MAX_EXAMPLES))
    if source.collates:
        return source.collate(samples)
    module = trained.module
    return module.task.collate(samples) if isinstance(module, TaskModule) else default_collate(samples)


def _limited(inputs: Inputs) -> Inputs:
    """A few samples, at least two: a program that was exported of one would take no others."""

    def few(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        return torch.cat([value, value]) if len(value) == 1 else value[:MAX_EXAMPLES]

    positional: Sequence[Any] = tree_map(few, list(inputs.positional))
    return Inputs(tuple(positional), tree_map(few, dict(inputs.named)))
