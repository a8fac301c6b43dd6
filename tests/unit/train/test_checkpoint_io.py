"""Checkpoints: whole or not there, and plain data."""

from __future__ import annotations

import enum
from pathlib import Path

import pytest
import torch

from hpcexp.errors import HpcexpError, RunError
from hpcexp.train.checkpointing.checkpoint_io import (
    AtomicCheckpointIO,
    read_checkpoint,
    weights_digest,
    write_checkpoint,
)
from hpcexp.train.checkpointing.plain_data import plain


class Kind(enum.Enum):
    ONE = "one"


def test_what_is_written_is_read_as_plain_data(tmp_path: Path) -> None:
    """Paths, enums, sets and scalars become what `weights_only` loads."""
    value = {"w": torch.ones(2), "path": Path("a"), "kind": Kind.ONE, "set": {2, 1}, "t": (1, None), 3: [1.5]}
    write_checkpoint(plain(value), tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read.pop("w"), value["w"])  # type: ignore[arg-type]
    assert {"path": "a", "kind": "one", "set": [1, 2], "t": (1, None), 3: [1.5]} == read


def test_objects_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    """The old file stays as it is."""
    write_checkpoint({"epoch": 1}, tmp_path / "a.ckpt")
    with pytest.raises(HpcexpError, match=r"callbacks.Own.x\[0\] is a builtins.object"):
        AtomicCheckpointIO().save_checkpoint({"callbacks": {"Own": {"x": [object()]}}}, tmp_path / "a.ckpt")
    assert {"epoch": 1} == read_checkpoint(tmp_path / "a.ckpt")
    assert [tmp_path / "a.ckpt"] == list(tmp_path.iterdir())


def test_damaged_and_missing_files_are_said(tmp_path: Path) -> None:
    """Without a traceback."""
    with pytest.raises(RunError, match="no checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")
    write_checkpoint({"w": torch.ones(1000)}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match="damaged"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_digest_tells_bits_names_and_shapes_apart() -> None:
    """And is the same for the same."""
    weights = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3), "c": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(1.0001)},
    ]
    assert weights_digest(weights) == weights_digest(plain(weights))
    assert weights_digest(weights) not in {weights_digest(other) for other in others}
