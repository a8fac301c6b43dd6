"""What hpcexp asks of a data set: facts for planning without reading samples, samples for the job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast

from hpcexp.data.content import How
from hpcexp.data_spec import DataSpec
from hpcexp.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Tensors:
    """A whole split in memory."""

    inputs: Tensor
    """`(N, *input_shape)`, float32, normalised."""
    targets: Tensor
    """Class numbers `(N,)`, int64; for regression values `(N, D)`, float32."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample, so that workers read it like any other data set."""
        return self.inputs[index], self.targets[index]


@dataclass(frozen=True)
class NamedTensors:
    """A whole split of several inputs in memory. The model gets them as arguments of their names."""

    inputs: Mapping[str, Tensor]
    """Name → `(N, …)`, as the source's DataSpec says."""
    targets: Tensor
    """`(N, …)`"""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """One sample, so that workers read it like any other data set."""
        return {name: values[index] for name, values in self.inputs.items()}, self.targets[index]


class Samples(Protocol):
    """A split that is read sample by sample: what `torch.utils.data` calls a map-style data set.

    A sample is a pair of inputs and targets, of which the inputs may be a mapping from their names, or a mapping with
    the names of inputs and targets.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class DataFile(NamedTuple):
    """A file that samples are read from."""

    path: Path
    rows: int
    """Samples in it."""


class Source(ABC):
    """A data set. Its constructor takes the arguments beside `data._target_`, and does nothing slow.

    Importing its module, constructing it, `facts`, `problems` and `resident_bytes` belong to planning, which has
    neither torch nor numpy. So does `files`.
    """

    @abstractmethod
    def facts(self) -> DataSpec:
        """Sizes, shapes, classes and fingerprint; DataError where `problems` has something to say.

        The fingerprint is of all that makes the samples beside the bytes of `files`, which hpcexp adds.
        """

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the arguments or the data, each as what, why and fix; empty where all is well."""

    @abstractmethod
    def load(self, split: Split) -> Tensors | NamedTensors | Samples | Iterable[Any]:
        """The samples of a split: tensors, a map-style data set, or an iterable that each epoch begins anew.

        An iterable need not know its length: `facts` says None for that of the training data. DataError, here or when a
        sample is read, names what cannot be read.
        """

    @abstractmethod
    def read(self, path: Path) -> Any:
        """A user's file as the inputs of one sample, made like those of training; DataError says why not."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples: pads what varies. Of samples without targets, as `read` gives them, a batch of inputs.

        The task collates where a source does not.
        """
        raise NotImplementedError(f"{type(self).__qualname__} leaves collating to the task: see Source.collates.")

    def example(self) -> Iterable[Any]:
        """Samples that show what the model gets, for its export: the first of the test data, or of what there are."""
        for split in reversed(SPLITS):
            samples: Any = self.load(split)
            if not hasattr(samples, "__getitem__"):
                return cast(Iterable[Any], samples)
            if len(samples):
                return (samples[index] for index in range(len(samples)))
        raise DataError(f"{type(self).__qualname__} has no samples, so there is no example of an input.")

    @property
    def collates(self) -> bool:
        """Whether it has a `collate` of its own."""
        return type(self).collate is not Source.collate

    def files(self) -> Iterable[DataFile]:
        """Files that the samples are read from, in the same order every time; none where they are made up.

        Other bytes in one of them make another data set. A run keeps their digests.
        """
        return ()

    def fingerprint_by(self, how: How) -> None:  # noqa: B027 - most have nothing to take note of
        """Receive `data.fingerprint`, before `facts`: for a source whose own fingerprint is of its files' content."""

    def resident_bytes(self) -> int:
        """Memory that all splits take as tensors."""
        facts = self.facts()
        return sum(count or 0 for count in facts.num_samples.values()) * facts.sample_bytes


def as_tensors(samples: Tensors | NamedTensors | Samples) -> Tensors | NamedTensors:
    """Every sample of a split in memory, in order. Memory is taken once: there is no list of samples beside it.

    Samples are pairs of tensors that have one shape throughout.
    """
    import torch

    if isinstance(samples, Tensors | NamedTensors):
        return samples
    if not len(samples):
        return Tensors(torch.empty(0), torch.empty(0, dtype=torch.int64))
    first = [torch.as_tensor(part) for part in samples[0]]
    inputs, targets = (part.new_empty((len(samples), *part.shape)) for part in first)
    for index in range(len(samples)):
        inputs[index], targets[index] = map(torch.as_tensor, samples[index])
    return Tensors(inputs, targets)


def fraction_problems(**fractions: float) -> list[str]:
    """What is wrong with shares that splits take of the data, by name of the argument."""
    problems = [
        f"data.{name}={value} is no share of the data: it must be at least 0 and less than 1.\nFix: data.{name}=0.1"
        for name, value in fractions.items()
        if not 0 <= value < 1
    ]
    if not problems and sum(fractions.values()) >= 1:
        together = " + ".join(f"data.{name}={value}" for name, value in fractions.items())
        problems.append(f"{together} leave nothing to train on.\nFix: make them less than 1 together.")
    return problems
