"""Whether a user's stream divides itself over ranks or workers: by its word, or refused where it reads its rank."""

from __future__ import annotations

import inspect
import re
from typing import Any

from hpcexp.errors import ConfigError
from hpcexp.train.data.loaders import Shard

WORD = "hpcexp_shards"
"""Attribute of a data set that says by what it divides itself: `none`, `ranks`, `workers` or `ranks and workers`."""
WORDS = {
    "none": frozenset[str](),
    "ranks": frozenset({"ranks"}),
    "workers": frozenset({"workers"}),
    "ranks and workers": frozenset({"ranks", "workers"}),
}
_READS_RANK = re.compile(
    r"\b(get_rank|get_world_size|global_rank|world_size|process_index|split_dataset_by_node|split_by_node)\b"
    r"|[\"'](RANK|WORLD_SIZE)[\"']"
)


def divides_by(dataset: Any, name: str, shard: Shard, *makers: Any) -> frozenset[str]:
    """By what a stream divides itself: `ranks`, `workers`.

    ConfigError where it, or one of its `makers`, reads the rank and does not say what for.
    """
    word = getattr(dataset, WORD, None)
    if word is not None:
        if word not in WORDS:
            raise ConfigError(f"{name}: {WORD}={word!r} is not one of {', '.join(map(repr, WORDS))}.")
        return WORDS[word]
    if getattr(dataset, "_distributed", None) is not None:  # Hugging Face's split_dataset_by_node
        return WORDS["ranks"]
    if shard.world_size == 1:
        return WORDS["none"]
    for maker in (dataset, *makers):
        if found := _reads_rank(type(maker)):
            raise ConfigError(
                f"{name} is an IterableDataset, and {type(maker).__name__} reads its rank ({found}): hpcexp cannot "
                "tell whether it gives each rank its part already.\n"
                f"Fix: {WORD} = 'ranks' in {type(dataset).__name__} if so; {WORD} = 'none' if it yields everything on "
                "every rank, and hpcexp gives each its part."
            )
    return WORDS["none"]


def _reads_rank(cls: type) -> str | None:
    """Where a user's class reads which rank it is on: `get_rank, data.py:31`."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "pytorch_lightning", "lightning", "builtins", "datasets"):
            continue
        try:
            lines, first = inspect.getsourcelines(base)
            file = inspect.getsourcefile(base)
        except (OSError, TypeError):
            continue
        for number, line in enumerate(lines, first):
            if found := _READS_RANK.search(line.partition("#")[0]):
                return f"{found[0]}, {file}:{number}"
    return None
