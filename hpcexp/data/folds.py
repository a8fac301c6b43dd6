"""Cross-validation: the training split cut into folds, one of them held out for validation."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import replace

from hpcexp.data_spec import DataSpec
from hpcexp.schema.keys import Data


def fold_problems(data: Data, facts: DataSpec | None) -> list[str]:
    """What is wrong with `data.folds` and `data.fold`."""
    folds, fold = data.folds, data.fold
    if folds is None:
        return [] if fold is None else [f"data.fold={fold}: of how many?\nFix: data.folds=5"]
    if fold is None:
        which = ",".join(map(str, range(folds)))
        return [f"data.folds={folds}: which fold is held out?\nFix: data.fold=0; or all of them: -m data.fold={which}"]
    if fold >= folds:
        return [f"data.fold={fold}: of data.folds={folds} the last is {folds - 1}.\nFix: data.fold={folds - 1}"]
    if facts is not None and facts.num_train is None:
        return [f"data.folds={folds}: the training split is a stream, whose samples have no numbers.\nFix: ~data.folds"]
    if facts is not None and facts.num_train is not None and facts.num_train < folds:
        return [f"data.folds={folds}, but there are only {facts.num_train:,} training samples.\nFix: data.folds=2"]
    return []


def with_fold(facts: DataSpec, data: Data) -> DataSpec:
    """The facts with the held-out fold as the validation split."""
    if data.folds is None or data.fold is None or facts.num_train is None:
        return facts
    held_out = fold_size(facts.num_train, data.folds, data.fold)
    return replace(facts, num_train=facts.num_train - held_out, num_val=held_out)


def fold_size(size: int, folds: int, fold: int) -> int:
    """Samples in a fold: they differ by one at most."""
    return (size + folds - 1 - fold) // folds


def fold_numbers(classes: Sequence[Hashable] | None, size: int, folds: int, seed: int) -> list[int]:
    """Fold of each of `size` samples: drawn by `seed`, with equal shares of each class where these are known."""
    drawn = random.Random(seed)  # noqa: S311 - no secret
    keys = [drawn.random() for _ in range(size)]
    order: list[int] = sorted(range(size), key=keys.__getitem__)
    if classes is not None:
        rank = {name: number for number, name in enumerate(dict.fromkeys(classes[i] for i in order))}
        order.sort(key=lambda i: rank[classes[i]])
    found = [0] * size
    for place, sample in enumerate(order):
        found[sample] = place % folds
    return found
