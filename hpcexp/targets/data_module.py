"""Keys of `data` that contradict what a user's LightningDataModule does itself."""

from __future__ import annotations

from collections.abc import Collection

from hpcexp.plan import Batch
from hpcexp.schema.settings import DataSettings

_FOR_OTHER_KINDS = {"loader": "auto", "eval_batch_size": None, "num_workers": 0}
"""Keys that hpcexp reads for other kinds of data, and what is the same as leaving them out."""


def data_module_problems(data: DataSettings, taken: Collection[str], batch: Batch | None) -> list[str]:
    """What nothing reads, and a batch size said twice; `taken`: arguments of the data module."""
    given = {name: data.given.get(name, unset) for name, unset in _FOR_OTHER_KINDS.items()}
    problems = [
        f"data.{name}={value}: {data.target} makes its loaders itself and takes no argument '{name}', so nothing "
        f"reads it.\nFix: ~data.{name}, or let its constructor take {name}."
        for name, value in given.items()
        if value != _FOR_OTHER_KINDS[name] and name not in taken
    ]
    own = data.given.get("batch_size")
    if batch is not None and isinstance(own, int) and own != batch.per_rank:
        problems.append(
            f"data.batch_size={own}, and data.global_batch_size={batch.global_size} asks for batches of "
            f"{batch.per_rank} on each rank.\nFix: ~data.batch_size, which hpcexp passes by itself; or "
            "~data.global_batch_size."
        )
    return problems
