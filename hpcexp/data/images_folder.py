"""Pictures in a folder for each class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.data.content import How, content, printable
from hpcexp.data.digests import Stamp, stamp_of
from hpcexp.data.picture import MODES, SUFFIXES, open_picture, pixels
from hpcexp.data.source import SPLITS, DataFile, Samples, Source, Split, fraction_problems
from hpcexp.data_spec import Classes, DataSpec, TensorSpec
from hpcexp.errors import DataError, listed, suggest

if TYPE_CHECKING:
    from torch import Tensor


class ImagesFolder(Source):
    """Pictures under `root/{train,val,test}/CLASS/`, or under `root/CLASS/` and split here; classes in order of name.

    Without folders for the splits, a class's pictures are put in the order of the SHA-256 of their path below `root`;
    the first `test_fraction` of them are for the test, the next `val_fraction` for validation, the rest for training.
    So the split depends on names alone, is the same on all machines, and holds each class in proportion. With folders
    for the splits the fractions are not used; a folder `test` may be missing.

    Pictures are scaled and cropped about the centre to `size` (a side, or height and width), given `channels` (1 grey,
    3 colour), and scaled to 0–1, less `mean`, over `std`.
    """

    def __init__(
        self,
        root: str,
        size: int | Sequence[int],
        channels: int = 3,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ) -> None:
        self.root = Path(root).expanduser()
        self.how: How = "auto"
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        height, width = (size, size) if isinstance(size, int) else size
        self.recipe = Recipe(height, width, channels, per_channel(mean, channels), per_channel(std, channels))

    def facts(self) -> DataSpec:
        """Counts, classes, a digest of all names and contents; DataError where `problems` has something to say."""
        if problems := self.problems():
            raise DataError("\n\n".join(problems))
        fingerprint, trusted = self.identity
        shape = (self.recipe.channels, self.recipe.height, self.recipe.width)
        return DataSpec(
            num_train=len(self.splits["train"]),
            num_val=len(self.splits["val"]),
            num_test=len(self.splits["test"]),
            inputs={"image": TensorSpec(shape, axes=("channel", "row", "column"))},
            targets=Classes(self.class_names),
            fingerprint=fingerprint,
            trusted=trusted,
        )

    def problems(self) -> list[str]:
        """What is wrong with the arguments or, where they are fine, with the folders."""
        return self.recipe.problems() or root_problems(self.root) or self.split_problems() or self.class_problems()

    def files(self) -> Iterator[DataFile]:
        """Every picture."""
        return (DataFile(self.root / file.path, 1) for split in SPLITS for file in self.splits[split])

    def fingerprint_by(self, how: How) -> None:
        """What of the pictures counts."""
        self.how = how

    def load(self, split: Split) -> Samples:
        """The pictures of a split, decoded when they are asked for."""
        number = {name: index for index, name in enumerate(self.class_names)}
        files = self.splits[split]
        return Pictures(str(self.root), [f.path for f in files], [number[f.class_name] for f in files], self.recipe)

    def read(self, path: Path) -> Tensor:
        """One picture as the training pictures are; DataError says why not."""
        return self.recipe.read(path)

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Digest of which files are in which split, their content, and how they are read; and what was not read."""
        files = [(split, file) for split in SPLITS for file in self.splits[split]]
        found = content(self.root, [file.path for _, file in files], [file.stamp for _, file in files], self.how)
        digest = hashlib.sha256(repr(self.recipe).encode())
        for (split, file), what in zip(files, found.digests, strict=True):
            digest.update(b"\0".join((split.encode(), os.fsencode(file.path), what.encode())) + b"\n")
        return digest.hexdigest(), found.trusted

    def split_problems(self) -> list[str]:
        """Folders or fractions that give no training or no validation set."""
        if not self.has_split_folders:
            return fraction_problems(val_fraction=self.val_fraction, test_fraction=self.test_fraction)
        if (self.root / "val").is_dir():
            return []
        others = [entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name not in SPLITS]
        hint = suggest("val", others) or f"it has {listed(['train', *others])}"
        return [f"data.root={self.root} has a folder train but none named val ({hint}).\nFix: name that folder val."]

    def class_problems(self) -> list[str]:
        """Too few classes, a class without pictures in a split, a class that is not trained on, an empty file."""
        if len(self.class_names) < 2:
            return [
                f"data.root={self.root} has {len(self.class_names)} folders of pictures ({listed(self.class_names)}); "
                + f"two classes at least are needed.\nPictures end in {', '.join(SUFFIXES)}.\n"
                + "Fix: give each class a folder there, or in each of the folders train, val and test there."
            ]
        problems = []
        for split in SPLITS:
            files = self.splits[split]
            if not files and split == "test":
                continue
            filled = {file.class_name for file in files}
            if missing := [name for name in self.class_names if name not in filled]:
                problems.append(self.empty_class_problem(split, missing))
        empty = [file.path for files in self.splits.values() for file in files if not file.stamp.size]
        if empty:
            problems.append(
                f"data.root={self.root} has {len(empty)} pictures that are empty files, among them {empty[0]}.\n"
                "Fix: replace or remove them."
            )
        return problems

    def empty_class_problem(self, split: Split, missing: Sequence[str]) -> str:
        """A message on classes that `split` has no picture of."""
        what = f"data.root={self.root} has no pictures for {split} of the classes {listed(missing)}."
        if self.has_split_folders:
            return f"{what}\nFix: put some into {self.root / split / missing[0]}, or remove the class from all splits."
        return f"{what}\nFix: add pictures, or choose other shares with data.val_fraction and data.test_fraction."

    @property
    def has_split_folders(self) -> bool:
        """Whether the splits are folders below `root`."""
        return (self.root / "train").is_dir()

    @cached_property
    def splits(self) -> dict[Split, list[File]]:
        """The files of each split, ordered by path."""
        if self.has_split_folders:
            return {split: list_files(self.root, split) for split in SPLITS}
        return split_files(list_files(self.root, ""), self.val_fraction, self.test_fraction)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """All folders that hold pictures, in any split."""
        return tuple(sorted({file.class_name for files in self.splits.values() for file in files}))


@dataclass(frozen=True)
class File:
    """A picture that was found; its stamp is no part of what it is."""

    path: str
    """Below `root`, with `/` on all machines."""
    class_name: str
    stamp: Stamp = field(compare=False)


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes an input."""

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def problems(self) -> list[str]:
        """Arguments that no picture can be read with."""
        problems = []
        if self.channels not in MODES:
            problems.append(f"data.channels={self.channels} must be 1 (grey) or 3 (colour).\nFix: data.channels=3")
        if min(self.height, self.width) < 1:
            problems.append(f"data.size={self.height}×{self.width} must be at least 1 pixel.\nFix: data.size=32")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                problems.append(
                    f"data.{name} has {len(values)} values, and pictures have data.channels={self.channels}.\n"
                    f"Fix: one number, or one for each channel."
                )
        if min(self.std, default=1.0) <= 0:
            problems.append(f"data.std={list(self.std)} must be above 0: pixels are divided by it.\nFix: data.std=0.25")
        return problems

    def read(self, path: Path) -> Tensor:
        """`(channels, height, width)`, float32; DataError where the file cannot be read."""
        import torch
        from PIL import ImageOps

        picture = ImageOps.fit(open_picture(path, self.channels), (self.width, self.height))
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        return (pixels(picture).float() / 255 - mean) / std


@dataclass(frozen=True)
class Pictures:
    """A split as a map-style data set, light enough to be sent to workers."""

    root: str
    paths: list[str]
    labels: list[int]
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An input and its class number; DataError names a file that cannot be read."""
        import torch

        return self.recipe.read(Path(self.root, self.paths[index])), torch.tensor(self.labels[index])


def root_problems(root: Path) -> list[str]:
    """Whether there is a folder to read."""
    if root.is_dir():
        return []
    if root.exists():
        return [f"data.root={root} is a file, and should be a folder with a folder of pictures for each class."]
    parent = next(p for p in root.absolute().parents if p.is_dir())
    neighbours = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    missing = root.absolute().relative_to(parent).parts[0]
    near = suggest(missing, neighbours)
    hint = f"; {near}" if near else ""
    return [f"data.root={root} does not exist: there is no '{missing}' in {parent}{hint}\nFix: data.root=FOLDER"]


def list_files(root: Path, below: str) -> list[File]:
    """Pictures in the folders of `root/below`, at any depth, ordered by path; none where there is no such folder."""
    base = root / below
    if not base.is_dir():
        return []
    with os.scandir(base) as folders:
        found = [
            File(Path(entry.path).relative_to(root).as_posix(), printable(folder.name), stamp_of(entry.stat()))
            for folder in folders
            if folder.is_dir() and not folder.name.startswith(".")
            for entry in walk(folder.path, frozenset({_inode(root), _inode(base)}))
        ]
    return sorted(found, key=_path)


def walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Pictures in a folder and those below it; hidden files and folders are left out.

    DataError where a link leads back to one of the folders `above` it.
    """
    here = _inode(Path(folder))
    if here in above:
        raise DataError(f"{folder} is a link to a folder that it lies in.\nFix: remove it.")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, above | {here})
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry


def _inode(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def split_files(files: Sequence[File], val_fraction: float, test_fraction: float) -> dict[Split, list[File]]:
    """The rule that `ImagesFolder` describes."""
    by_class: dict[str, list[File]] = {}
    for file in files:
        by_class.setdefault(file.class_name, []).append(file)
    splits: dict[Split, list[File]] = {"train": [], "val": [], "test": []}
    for members in by_class.values():
        members.sort(key=lambda file: hashlib.sha256(os.fsencode(file.path)).digest())
        num_test, num_val = share(test_fraction, len(members)), share(val_fraction, len(members))
        splits["test"] += members[:num_test]
        splits["val"] += members[num_test : num_test + num_val]
        splits["train"] += members[num_test + num_val :]
    return {split: sorted(members, key=_path) for split, members in splits.items()}


def _path(file: File) -> str:
    return file.path


def share(fraction: float, count: int) -> int:
    """The rounded share, but one at least of any share that is not zero."""
    return max(1, round(fraction * count)) if fraction else 0


def per_channel(value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One number for every channel, or the numbers as they are."""
    return (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value)
