"""Samples that are not what their source's facts say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcexp.data_spec import DataSpec, TensorSpec


def sample_problem(sample: Any, facts: DataSpec) -> str | None:
    """What is wrong with a sample: `inputs of shape (3,), where facts() says (4,)`; None where nothing is."""
    inputs = named_inputs(sample, facts)
    if missing := [name for name in facts.inputs if name not in inputs]:
        return f"samples without {', '.join(missing)}, which facts() lists among its inputs"
    for name, spec in facts.inputs.items():
        if (problem := _tensor_problem(inputs[name], spec)) is not None:
            return f"{name if len(facts.inputs) > 1 else 'inputs'} of {problem}"
    return None


def named_inputs(sample: Any, facts: DataSpec) -> Mapping[str, Any]:
    """The inputs of a sample by their names: it is a mapping, or a pair of inputs and targets."""
    inputs = sample if isinstance(sample, Mapping) or facts.targets is None else sample[0]
    if isinstance(inputs, Mapping):
        return inputs
    parts = inputs if isinstance(inputs, tuple | list) and len(facts.inputs) > 1 else [inputs]
    return dict(zip(facts.inputs, parts, strict=False))


def _tensor_problem(value: Any, spec: TensorSpec) -> str | None:
    shape, dtype = getattr(value, "shape", None), str(getattr(value, "dtype", "")).removeprefix("torch.")
    if shape is None:
        return None  # a number or a text, of which the source's collate makes tensors
    fits = len(shape) == len(spec.shape) and all(b in (None, a) for a, b in zip(shape, spec.shape, strict=True))
    if not fits:
        return f"shape {tuple(shape)}, where facts() says {spec.shape}"
    return None if dtype == spec.dtype else f"dtype {dtype}, where facts() says {spec.dtype}"
