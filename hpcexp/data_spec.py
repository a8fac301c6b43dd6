"""What a data set consists of: how many samples, which named inputs, what is to be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from hpcexp.errors import DataError, did_you_mean, listed

DTYPES = {
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
    "bfloat16": 2,
    **{f"int{bits}": bits // 8 for bits in (8, 16, 32, 64)},
    "uint8": 1,
    "bool": 1,
}
"""Name in torch → bytes of one number."""


class DataSpecError(DataError, ValueError):
    """A field of a DataSpec that is not what it must be."""


class TensorSpec(Struct, frozen=True):
    """One named input of a sample, as the model sees it, without the batch."""

    shape: tuple[int | None, ...]
    """`(C, H, W)` for images, `(F,)` for features, `()` for one number; None for a length that differs from sample to
    sample, which `collate` pads."""
    dtype: str = "float32"
    """By its name in torch."""
    axes: tuple[str, ...] = ()
    """Names of the axes of `shape`, for people and exported models: `("time", "channel")`."""

    def __post_init__(self) -> None:
        force_setattr(self, "shape", _shape("TensorSpec.shape", self.shape))
        force_setattr(self, "axes", _texts("TensorSpec.axes", self.axes))
        _dtype("TensorSpec.dtype", self.dtype)
        if self.axes and len(self.axes) != len(self.shape):
            raise _wrong("TensorSpec.axes", self.axes, f"a name for each of the {len(self.shape)} axes, or empty")

    @property
    def is_fixed(self) -> bool:
        """Whether all samples have the same shape."""
        return None not in self.shape

    @property
    def num_bytes(self) -> int:
        """Of one sample, variable lengths counted as one."""
        return _product(self.shape) * DTYPES[self.dtype]


class Classes(Struct, frozen=True, tag_field="kind", tag="classes"):
    """Targets that are class numbers, int64."""

    names: tuple[str, ...]
    """Of the classes, in the order of their numbers."""
    shape: tuple[int | None, ...] = ()
    """Of one sample's targets: `()` for one class a sample, `(None,)` for one at each position of a sequence."""
    multiple: bool = False
    """Any number of classes at once: targets are float32 zeros and ones with a last axis over the classes."""

    def __post_init__(self) -> None:
        names = _texts("Classes.names", self.names)
        force_setattr(self, "names", names)
        if len(names) < 2 - self.multiple:
            raise _wrong("Classes.names", names, "the names of at least two classes")
        if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
            raise _wrong("Classes.names", twice[0], "a name that only one class has")
        force_setattr(self, "shape", _shape("Classes.shape", self.shape))

    @property
    def num_outputs(self) -> int:
        """Numbers that a model gives for a sample, or for a position of it."""
        return len(self.names)

    @property
    def num_bytes(self) -> int:
        """Of one sample's targets."""
        return _product(self.shape) * (4 * len(self.names) if self.multiple else 8)


class Values(Struct, frozen=True, tag_field="kind", tag="values"):
    """Targets that are real numbers."""

    shape: tuple[int | None, ...] = (1,)
    """Of one sample's targets."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        force_setattr(self, "shape", _shape("Values.shape", self.shape))
        _dtype("Values.dtype", self.dtype)

    @property
    def num_outputs(self) -> int:
        """Numbers that a model gives for a sample."""
        return _product(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of one sample's targets."""
        return _product(self.shape) * DTYPES[self.dtype]


class Tokens(Struct, frozen=True, tag_field="kind", tag="tokens"):
    """Targets that are sequences of token numbers, int64."""

    vocabulary_size: int
    shape: tuple[int | None, ...] = (None,)
    """Of one sample's targets."""
    padding: int | None = None
    """The number that fills a batch up, and counts nowhere."""

    def __post_init__(self) -> None:
        _number("Tokens.vocabulary_size", self.vocabulary_size, least=2)
        force_setattr(self, "shape", _shape("Tokens.shape", self.shape))
        if self.padding is not None:
            _number("Tokens.padding", self.padding, least=-(2**31))

    @property
    def num_outputs(self) -> int:
        """Numbers that a model gives for a position."""
        return self.vocabulary_size

    @property
    def num_bytes(self) -> int:
        """Of one sample's targets, variable lengths counted as one."""
        return _product(self.shape) * 8


Targets = Classes | Values | Tokens


@dataclass(frozen=True)
class DataSpec:
    """What is known of a data set without reading its samples. Each field is checked when it is made."""

    num_train: int | None
    """Training samples; None for a stream whose length nobody knows."""
    num_val: int
    num_test: int
    inputs: Mapping[str, TensorSpec]
    """Name → input, in the order in which a model takes them."""
    targets: Targets | None
    """What is to be predicted; None where a model learns from the inputs alone."""
    fingerprint: str
    """Digest of the data's content, or of its listing where that is too large to read."""
    trusted: str = ""
    """What was taken for the content where it was not read: `names, sizes and times of 1,281,167 files (148 GB)`."""

    def __post_init__(self) -> None:
        if self.num_train is not None:
            _number("num_train", self.num_train)
        _number("num_val", self.num_val)
        _number("num_test", self.num_test)
        if not isinstance(self.inputs, Mapping) or not self.inputs:
            raise _wrong("inputs", self.inputs, "a mapping from names to TensorSpec, with at least one entry")
        for name, spec in self.inputs.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise _wrong("inputs", name, "names of letters, digits and _, that a Python argument can have")
            if not isinstance(spec, TensorSpec):
                raise _wrong(f"inputs[{name!r}]", spec, "a TensorSpec")
        if self.targets is not None and not isinstance(self.targets, Targets):
            raise _wrong("targets", self.targets, "Classes, Values, Tokens or None")
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise _wrong("fingerprint", self.fingerprint, "a digest of what makes the samples, as text")
        if not isinstance(self.trusted, str):
            raise _wrong("trusted", self.trusted, "text")

    @property
    def num_samples(self) -> dict[Literal["train", "val", "test"], int | None]:
        """Samples of each split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes; empty where the targets are none."""
        return self.targets.names if isinstance(self.targets, Classes) else ()

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample as tensors, variable lengths counted as one."""
        return sum(spec.num_bytes for spec in self.inputs.values()) + (self.targets.num_bytes if self.targets else 0)


def _number(field: str, value: Any, least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(field, value, f"a whole number, at least {least}")


def _shape(field: str, value: Any) -> tuple[int | None, ...]:
    sides = tuple(value) if isinstance(value, list | tuple) else None
    if sides is None or not all(n is None or _is_length(n) for n in sides):
        raise _wrong(field, value, "a tuple of lengths of at least 1, with None for one that varies")
    return sides


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _texts(field: str, value: Any) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise _wrong(field, value, "a tuple of texts")
    return texts


def _dtype(field: str, value: Any) -> None:
    if not isinstance(value, str) or value not in DTYPES:
        near = did_you_mean(value, DTYPES) if isinstance(value, str) else ""
        raise _wrong(field, value, f"a dtype of torch by name, {near}one of {listed(DTYPES)}")


def _product(shape: tuple[int | None, ...]) -> int:
    size = 1
    for side in shape:
        size *= side or 1
    return size


def _wrong(field: str, value: Any, expected: str) -> DataSpecError:
    return DataSpecError(f"{field}={value!r}: expected {expected}.")
