"""The samples of a fold, and those of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Subset

from hpcexp.data.folds import fold_numbers
from hpcexp.data.source import NamedTensors, Samples, Tensors
from hpcexp.schema.keys import Data

_LABELS = ("targets", "labels")
"""Attributes by which data sets tell the classes of all their samples."""


@dataclass(frozen=True)
class Fold:
    """The one of a number of parts that is held out."""

    count: int
    number: int
    seed: int

    def indices(self, classes: Sequence[Any] | None, size: int, *, held_out: bool) -> list[int]:
        """Of the samples of the part that is held out, or of the others, in order."""
        parts = fold_numbers(classes, size, self.count, self.seed)
        return [sample for sample, part in enumerate(parts) if (part == self.number) is held_out]

    def kept(self, dataset: Any, *, held_out: bool) -> frozenset[int]:
        """The same of a user's data set, by the classes that it tells."""
        return frozenset(self.indices(classes_of(dataset), len(dataset), held_out=held_out))


def fold_in(settings: Data) -> Fold | None:
    """The fold that is asked for, if any is."""
    if settings.folds is None or settings.fold is None:
        return None
    return Fold(settings.folds, settings.fold, settings.fold_seed)


def part_of(
    samples: Tensors | NamedTensors | Samples, fold: Fold, *, has_classes: bool, held_out: bool
) -> Tensors | NamedTensors | Samples:
    """Some of the samples of a training split."""
    indices = fold.indices(_classes(samples) if has_classes else None, len(samples), held_out=held_out)
    if isinstance(samples, Tensors):
        chosen = torch.tensor(indices, device=samples.targets.device)
        return Tensors(samples.inputs.index_select(0, chosen), samples.targets.index_select(0, chosen))
    if isinstance(samples, NamedTensors):
        chosen = torch.tensor(indices, device=samples.targets.device)
        inputs = {name: values.index_select(0, chosen) for name, values in samples.inputs.items()}
        return NamedTensors(inputs, samples.targets.index_select(0, chosen))
    return Subset(samples, indices)  # type: ignore[arg-type]


def _classes(samples: Tensors | NamedTensors | Samples) -> list[Any]:
    """The class of each sample; reads them all where the data set does not know."""
    held = isinstance(samples, Tensors | NamedTensors)
    known: list[Any] | None = samples.targets.tolist() if held else classes_of(samples)  # type: ignore[union-attr]
    if known is not None:
        return known
    read = (samples[i] for i in range(len(samples)))
    return [int(sample["targets"] if isinstance(sample, Mapping) else sample[1]) for sample in read]


def classes_of(dataset: Any) -> list[Any] | None:
    """The class of each sample, where a data set knows them without reading samples."""
    if isinstance(dataset, Subset):
        whole = classes_of(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):  # Hugging Face's
        name = next((name for name in ("label", "labels") if name in columns), None)
        return None if name is None else list(dataset.with_format(None)[name])
    found = next((value for name in _LABELS if (value := getattr(dataset, name, None)) is not None), None)
    return None if found is None else torch.as_tensor(found).tolist()
